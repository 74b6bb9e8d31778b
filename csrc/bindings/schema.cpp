// Every operator's schema, once. Implementations sit with their device's code; what they mean is said in dynroute/ops.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

// An operator, and its call on CUDA as data, made of tensors on the CPU: the results, which the launches compute; what
// else they touch; the launches.
template <class Library>
void def_operator(Library& m, const std::string& schema) {
  m.def(schema.c_str());
  const size_t arguments = schema.find('('), end = schema.find(") ->");
  const std::string call = "cuda_" + schema.substr(0, arguments) + "_call" + schema.substr(arguments, end - arguments);
  m.def((call + ", int[] device) -> (Tensor[] outs, Tensor[] held, Tensor launches)").c_str());
}

}  // namespace

STABLE_TORCH_LIBRARY(dynroute, m) {
  def_operator(
      m,
      "sepconv(Tensor x, Tensor[] depthwise, Tensor[] pointwise, Tensor[] scale, Tensor[] shift, Tensor? open, "
      "int stride, bool residual, bool final_relu) -> Tensor");
  def_operator(
      m,
      "gate(Tensor x, Tensor weight, Tensor scale, Tensor shift, Tensor fc_weight, Tensor fc_bias, str activation, "
      "bool small, Tensor? present) -> Tensor");
  def_operator(m,
               "route(Tensor alphas, Tensor present, Tensor path_exists, Tensor slots) -> (Tensor alphas, Tensor open, "
               "Tensor open_count, Tensor path_open, Tensor path_count, Tensor closed, Tensor present, Tensor slots)");
  def_operator(m, "transform(Tensor x, Tensor weight, Tensor scale, Tensor shift, Tensor? open, int stride) -> Tensor");
  def_operator(m, "aggregate(Tensor? down, Tensor? keep, Tensor? up, Tensor? alphas) -> Tensor");
  // `wanted`: gradients of down, keep, up and alphas; sources are read for the last alone. What is not wanted is empty.
  def_operator(
      m,
      "aggregate_backward(Tensor grad, Tensor? down, Tensor? keep, Tensor? up, Tensor? alphas, bool[] wanted) -> "
      "(Tensor down, Tensor keep, Tensor up, Tensor alphas)");

  // Training: BatchNorm with the batch's statistics. raw: the stages' outputs before it, [stages * N, C, H, W]; stats:
  // of each BatchNorm [3, C] mean, inverse deviation, unbiased variance. A backward's `wanted`: gradients of x and of
  // weights; its `weights`: those gradients one after the other, each laid out as its weight, those of BatchNorms last.
  // `group`: the processes whose BatchNorms see one batch, by the name that the function of `set_gather` knows; "":
  // none. `narrow`: raw outputs are kept in bfloat16 beside float32 maps.
  def_operator(m,
               "sepconv_train(Tensor x, Tensor[] depthwise, Tensor[] pointwise, Tensor[] gamma, Tensor[] beta, "
               "Tensor[] running_mean, Tensor[] running_var, Tensor? open, int stride, bool residual, bool final_relu, "
               "bool frozen, str group, float eps, bool narrow) -> (Tensor out, Tensor raw, Tensor stats)");
  def_operator(
      m,
      "sepconv_train_backward(Tensor grad, Tensor x, Tensor[] depthwise, Tensor[] pointwise, Tensor[] gamma, "
      "Tensor[] beta, Tensor raw, Tensor stats, Tensor? open, int stride, bool residual, bool final_relu, bool frozen, "
      "str group, bool narrow, bool[] wanted) -> (Tensor x, Tensor weights)");
  def_operator(
      m,
      "transform_train(Tensor x, Tensor weight, Tensor gamma, Tensor beta, Tensor running_mean, Tensor running_var, "
      "Tensor? open, int stride, bool relu_input, bool frozen, str group, float eps, bool narrow) -> (Tensor out, "
      "Tensor raw, Tensor stats)");
  def_operator(
      m,
      "transform_train_backward(Tensor grad, Tensor x, Tensor weight, Tensor gamma, Tensor beta, Tensor raw, "
      "Tensor stats, Tensor? open, int stride, bool relu_input, bool frozen, str group, bool narrow, bool[] wanted) -> "
      "(Tensor x, Tensor weights)");
  // A node: its cell and its paths, weighted by alphas [N, 3]. BatchNorms: the cell's, then up's and down's as far as
  // they are there; raw is the cell's, empty tensors stand for a path that is not. `skip`: closed samples and paths are
  // left out.
  def_operator(
      m,
      "node_train(Tensor x, Tensor alphas, Tensor[] depthwise, Tensor[] pointwise, Tensor? up, Tensor? down, "
      "Tensor[] gamma, Tensor[] beta, Tensor[] running_mean, Tensor[] running_var, Tensor? factor, float bridge, "
      "bool skip, bool frozen, str group, float eps, bool narrow) -> (Tensor keep, Tensor up, Tensor down, Tensor raw, "
      "Tensor up_raw, Tensor down_raw, Tensor stats)");
  def_operator(
      m,
      "node_train_backward(Tensor? grad_keep, Tensor? grad_up, Tensor? grad_down, Tensor x, Tensor alphas, "
      "Tensor[] depthwise, Tensor[] pointwise, Tensor? up, Tensor? down, Tensor[] gamma, Tensor[] beta, Tensor raw, "
      "Tensor up_raw, Tensor down_raw, Tensor stats, Tensor? factor, float bridge, bool skip, bool frozen, "
      "str group, bool narrow, bool[] wanted) -> (Tensor x, Tensor alphas, Tensor weights)");

  // The sum over labelled pixels; gradient: of logits, when the loss's is 1; with N = 0 where it is not wanted.
  def_operator(m,
               "upsampled_cross_entropy(Tensor logits, Tensor labels, int factor, Tensor? weight, int ignore_index, "
               "bool with_gradient) -> (Tensor loss, Tensor gradient)");

  // Alphas [N, 3], zeros but for `columns`. pool: of each sample and channel, [N, 3, M] the mean of what is pooled, the
  // pixels where it is above 0, and the sum there of raw less its mean.
  def_operator(
      m,
      "gate_train(Tensor x, Tensor weight, Tensor gamma, Tensor beta, Tensor running_mean, Tensor running_var, "
      "Tensor fc_weight, Tensor fc_bias, str activation, int[] columns, bool small, bool frozen, str group, "
      "float eps, bool narrow) -> (Tensor alphas, Tensor raw, Tensor stats, Tensor pool)");
  def_operator(
      m,
      "gate_train_backward(Tensor grad, Tensor x, Tensor weight, Tensor gamma, Tensor beta, Tensor fc_weight, "
      "Tensor alphas, Tensor raw, Tensor stats, Tensor pool, str activation, int[] columns, bool small, bool frozen, "
      "str group, bool narrow, bool[] wanted) -> (Tensor x, Tensor weights)");

  m.def("network_buffer(int floats) -> Tensor");
  m.def("network_workspace(int n, int h, int w, int[] config) -> int");
  m.def(
      "network_forward(Tensor images, Tensor weights, Tensor table, int[] config, Tensor? gates, "
      "Tensor(a!) workspace, Tensor(b!) logits) -> (Tensor gates, Tensor node_macs, Tensor sample_macs)");

  // The CUDA network: its buffers and its launch list, made on the host, and the launches themselves.
  m.def(
      "cuda_plan(int[] config, int[] image, int dtype, int fusion, int[] device) -> (str names, Tensor places, "
      "int workspace)");
  m.def(
      "cuda_launches(int[] config, int[] image, int dtype, int fusion, int[] device, int[] addresses, int weights, "
      "Tensor table) -> Tensor");
  m.def("cuda_run(Tensor(a!) workspace, Tensor launches, int dtype, int first, int last, int[] io) -> ()");
  m.def("cuda_hold(Tensor tensor) -> ()");
  m.def("cuda_limits(int device) -> int[]");

  m.def("set_gather(int address) -> ()");
  m.def("cuda_set_gather(int address) -> ()");

  m.def("contract() -> str");
  m.def("build_info() -> str");
  m.def("weights_in_tiles(int k, int n) -> bool");
  m.def("last_macs() -> int[]");
  m.def("total_macs() -> int");
  m.def("fma_flops(str isa, int iterations) -> float");
  m.def("tile_flops(str isa, int iterations) -> float");
  m.def("debug_skip_tile(int index) -> ()");
}
