// The operators on CUDA tensors as lists of launches: arguments checked, memory asked for, structs filled. Nothing is
// launched here, and nothing is of CUDA: the same lists are made for tensors on the CPU, for the emulator.
#pragma once
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/op_checks.h"
#include "cuda/kernels/aggregate.h"
#include "cuda/kernels/aggregate_backward.h"
#include "cuda/kernels/gate.h"
#include "cuda/kernels/prepare.h"
#include "cuda/kernels/route.h"
#include "cuda/kernels/sepconv.h"
#include "cuda/kernels/transform.h"
#include "cuda/network/records.h"

namespace dynroute::cuda {

using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;

// What a call is: its results, and what lives until it is done. Later work of the same stream may take the memory.
struct OpCall {
  std::vector<Tensor> outs;
  std::vector<Tensor> held;  // scratch, and contiguous copies of arguments
  DType dtype;
  std::vector<Launch> launches;
};

inline DType dtype_of(ScalarType type) {
  return type == ScalarType::Float ? DType::kFloat : type == ScalarType::Half ? DType::kHalf : DType::kBfloat16;
}

// Puts a call together.
class CallBuilder {
 public:
  CallBuilder(const Device& device, const DeviceLimits& limits, ScalarType type)
      : device_(device), limits_(limits), type_(type), call_{{}, {}, dtype_of(type), {}} {}

  const void* map(const Tensor& tensor) { return keep(nhwc(tensor)).const_data_ptr(); }
  const void* values(const Tensor& tensor) { return keep(torch::stable::contiguous(tensor)).const_data_ptr(); }
  void* out(std::initializer_list<int64_t> sizes, ScalarType type, bool channels_last = false) {
    return call_.outs.emplace_back(new_tensor(sizes, type, channels_last, device_)).mutable_data_ptr();
  }
  void* out(std::initializer_list<int64_t> sizes) { return out(sizes, type_, true); }
  // Memory until the call is done. On a device small parts share a tensor, as asking for each takes the host microseconds;
  // on the host they are the emulator's, which sees a step over an edge where they are apart.
  void* scratch(int64_t bytes) {
    const int64_t needed = round_up(bytes, int64_t(256));
    if (device_.type() == DeviceType::CPU || needed > kSlab / 4) return tensor_of(needed);
    if (needed > slab_left_) slab_ = static_cast<char*>(tensor_of(kSlab)), slab_left_ = kSlab;
    slab_left_ -= needed;
    return std::exchange(slab_, slab_ + needed);
  }
  float* floats(int64_t count) { return static_cast<float*>(scratch(count * int64_t(sizeof(float)))); }
  int* ints(int64_t count) { return static_cast<int*>(scratch(count * int64_t(sizeof(int)))); }

  // What `prepare` will have made, in scratch, once it is launched: the weights of a 1x1 convolution,
  Matrix matrix(const Tensor& weight, const Tensor& scale, const Tensor& shift) {
    const int n = int(weight.size(0)), k = int(weight.size(1));
    void* const weights = scratch(int64_t(padded(n)) * padded(k) * bytes_of(call_.dtype));
    const Matrix to = {weights, floats(padded(n)), k, n, padded(k), padded(n)};
    prepare_.matrix[matrices_++] = {values(weight), values(scale), values(shift), to, {}};
    return to;
  }
  // taps,
  const float* depthwise(const Tensor& weight) {
    float* const to = floats(9 * weight.size(0));
    prepare_.depthwise[depthwises_++] = {values(weight), to, int(weight.size(0)), {}};
    return to;
  }
  // values as floats,
  const float* widened(const Tensor& from) {
    float* const to = floats(from.numel());
    prepare_.widened[widened_++] = {values(from), to, int(from.numel())};
    return to;
  }
  // zeros,
  int* zeros(int count) {
    prepare_.zeroed_count = count;
    return prepare_.zeroed = ints(count);
  }
  // and the list of open samples, as a row's tables hold scale 0's, with the others' outputs cleared. Null: all.
  Row open(const Maybe& mask) {
    const Tensor& result = call_.outs.front();
    const int64_t n = result.size(0);
    prepare_.n = int(n), prepare_.out = const_cast<void*>(result.const_data_ptr());
    prepare_.out_size = result.numel() / n;
    if (!mask) return {};
    constexpr int64_t kBefore = kOpen * kScales;  // what a row's tables have there is not looked at
    prepare_.open = static_cast<const uint8_t*>(values(*mask));
    Row row = {};
    row.counts = ints(kBefore + 1), row.samples = ints((kBefore + 1) * n);
    prepare_.list = {row.counts + kBefore, row.samples + kBefore * n};
    return row;
  }
  OpenSamples opened(const Maybe& mask) { return open(mask), prepare_.list; }
  void launch_prepare(const char* op) { launch(op, "prepare", prepare_shape, prepare_); }
  // The launch's shape also fills in what host and kernel have to agree on.
  template <class Params, class ShapeOf>
  void launch(const char* op, const char* kernel, ShapeOf shape_of, Params params) {
    const LaunchShape shape = shape_of(params, call_.dtype, limits_);
    require(shape.shared <= limits_.shared_per_block,
            std::string(op) + ": these channels need " + std::to_string(shape.shared) +
                " bytes of shared memory per block, the device has " + std::to_string(limits_.shared_per_block));
    const auto* bytes = reinterpret_cast<const unsigned char*>(&params);
    call_.launches.push_back({kernel, shape, {bytes, bytes + sizeof(Params)}});
  }
  OpCall take() { return std::move(call_); }

 protected:
  static constexpr int64_t kSlab = 1 << 18;
  void* tensor_of(int64_t bytes) {
    call_.held.push_back(new_tensor({bytes}, ScalarType::Byte, false, device_));
    return call_.held.back().mutable_data_ptr();
  }
  const Tensor& keep(Tensor tensor) { return call_.held.emplace_back(std::move(tensor)); }
  const Device device_;
  const DeviceLimits limits_;
  const ScalarType type_;
  char* slab_ = nullptr;
  int64_t slab_left_ = 0;
  OpCall call_;
  PrepareParams prepare_ = {};
  int matrices_ = 0, depthwises_ = 0, widened_ = 0;  // of its places taken
};

// Kernels count the values of a sample's map, and the pixels of all samples, in 32 bits.
inline void check_size(const std::string& what, int64_t n, int64_t c, int64_t h, int64_t w) {
  constexpr int64_t kMost = INT32_MAX;
  require(c * h * w <= kMost && n * h * w <= kMost,
          what + ": wanted at most 2147483647 values in a sample, and pixels in all, got " +
              shape_text(std::vector<int64_t>{n, c, h, w}));
}
inline OpRules on_gpu(const Device& device) { return {device, true, 8}; }

inline OpCall sepconv_call(const Device& device, const DeviceLimits& limits, const Tensor& x, const Tensors& depthwise,
                           const Tensors& pointwise, const Tensors& scale, const Tensors& shift, const Maybe& open,
                           int64_t stride, bool residual, bool final_relu) {
  const ScalarType type = check_sepconv(x, depthwise, pointwise, scale, shift, open, stride, residual, on_gpu(device));
  const int64_t n = x.size(0), h = strided(int(x.size(2)), int(stride)), w = strided(int(x.size(3)), int(stride));
  const size_t stages = depthwise.size();
  check_size("sepconv: x", n, x.size(1), x.size(2), x.size(3));
  for (const Tensor& weight : pointwise) check_size("sepconv: pointwise", n, weight.size(0), h, w);
  CallBuilder build(device, limits, type);
  void* const out = build.out({n, pointwise.back().size(0), h, w});
  if (n == 0) return build.take();
  const Row row = build.open(open);
  std::vector<SepconvParams> params(stages);
  const void* const input = build.map(x);
  const void* from = input;
  for (size_t k = 0; k < stages; ++k) {
    const bool first = k == 0, last = k + 1 == stages;
    SepconvStage& stage = params[k].stage[0];
    stage.depthwise = build.depthwise(depthwise[k]);
    stage.pointwise = build.matrix(pointwise[k], scale[k], shift[k]);
    stage.c_in = stage.pointwise.k, stage.stride = first ? int(stride) : 1;
    stage.h_in = first ? int(x.size(2)) : int(h), stage.w_in = first ? int(x.size(3)) : int(w);
    stage.h_out = int(h), stage.w_out = int(w);
    stage.from = stage.to = kPlain;
    stage.plain_x = from;
    stage.plain_out = last ? out : build.scratch(n * h * w * stage.pointwise.n * bytes_of(dtype_of(type)));
    from = stage.plain_out;
    if (last && residual) stage.plain_residual = input;
    stage.relu = !last || final_relu;
    params[k].row = row, params[k].n = int(n);
  }
  build.launch_prepare("sepconv");
  for (const SepconvParams& stage : params) build.launch("sepconv", "sepconv", sepconv_shape, stage);
  return build.take();
}

inline OpCall transform_call(const Device& device, const DeviceLimits& limits, const Tensor& x, const Tensor& weight,
                             const Tensor& scale, const Tensor& shift, const Maybe& open, int64_t stride) {
  const ScalarType type = check_transform(x, weight, scale, shift, open, stride, on_gpu(device));
  TransformParams p = {};
  p.n = int(x.size(0)), p.c = int(x.size(1)), p.h = int(x.size(2)), p.w = int(x.size(3)), p.stride = int(stride);
  p.h_out = strided(p.h, p.stride), p.w_out = strided(p.w, p.stride);
  check_size("transform: x", p.n, p.c, p.h, p.w);
  check_size("transform: weight", p.n, weight.size(0), p.h_out, p.w_out);
  CallBuilder build(device, limits, type);
  p.out = build.out({p.n, weight.size(0), p.h_out, p.w_out});
  if (p.n == 0) return build.take();
  p.open = build.opened(open);
  p.x = build.map(x);
  p.weight = build.matrix(weight, scale, shift);
  build.launch_prepare("transform");
  build.launch("transform", "transform", transform_shape, p);
  return build.take();
}

inline OpCall aggregate_call(const Device& device, const DeviceLimits& limits, const Maybe& down, const Maybe& keep,
                             const Maybe& up, const Maybe& alphas) {
  const AggregateShape shape = check_aggregate(down, keep, up, alphas, on_gpu(device));
  check_size("aggregate: sources", shape.n, shape.c, shape.h, shape.w);
  CallBuilder build(device, limits, shape.type);
  void* const out = build.out({shape.n, shape.c, shape.h, shape.w});
  if (shape.n == 0) return build.take();
  const auto source = [&](const Maybe& map) { return map ? build.map(*map) : nullptr; };
  AggregateParams p = {};
  p.down = source(down), p.keep = source(keep), p.up = source(up);
  p.alphas = alphas ? build.values(*alphas) : nullptr;
  p.out = out;
  p.n = int(shape.n), p.h = int(shape.h), p.w = int(shape.w), p.c = int(shape.c);
  build.launch("aggregate", "aggregate", aggregate_shape, p);
  return build.take();
}

// outs: the gradients of down, keep, up and alphas, of no samples where not wanted.
inline OpCall aggregate_backward_call(const Device& device, const DeviceLimits& limits, const Tensor& grad,
                                      const Maybe& down, const Maybe& keep, const Maybe& up, const Maybe& alphas,
                                      const std::vector<bool>& wanted) {
  const ScalarType type = check_aggregate_backward(grad, down, keep, up, alphas, wanted, on_gpu(device));
  const int64_t n = grad.size(0), c = grad.size(1), h = grad.size(2), w = grad.size(3);
  check_size("aggregate_backward: grad", n, c, h, w);
  CallBuilder build(device, limits, type);
  const auto gradient = [&](int which, int64_t rows, int64_t columns) {
    const bool wants = wanted[size_t(which)];
    void* const to = build.out({wants ? n : 0, c, rows, columns});
    return wants ? to : nullptr;
  };
  AggregateBackwardParams p = {};
  p.grad_down = gradient(kOfDown, h, w), p.grad_keep = gradient(kOfKeep, h, w),
  p.grad_up = gradient(kOfUp, h / 2, w / 2);
  void* const grad_alphas = build.out({wanted[kOfAlphas] ? n : 0, kPaths}, type);
  if (n == 0) return build.take();
  p.n = int(n), p.h = int(h), p.w = int(w), p.c = int(c);
  p.grad = build.map(grad);
  p.alphas = alphas ? build.values(*alphas) : nullptr;
  if (wanted[kOfAlphas]) {
    const auto source = [&](const Maybe& map) { return map ? build.map(*map) : nullptr; };
    p.down = source(down), p.keep = source(keep), p.up = source(up);
    p.grad_alphas = grad_alphas;
    const int64_t tasks = aggregate_backward_tasks(p, bytes_of(dtype_of(type)));
    p.partials = static_cast<double*>(build.scratch(n * tasks * kPaths * int64_t(sizeof(double))));
    p.arrivals = build.zeros(p.n);
    build.launch_prepare("aggregate_backward");
  }
  build.launch("aggregate_backward", "aggregate_backward", aggregate_backward_shape, p);
  return build.take();
}

inline OpCall gate_call(const Device& device, const DeviceLimits& limits, const Tensor& x, const Tensor& weight,
                        const Tensor& scale, const Tensor& shift, const Tensor& fc_weight, const Tensor& fc_bias,
                        const std::string& activation, bool small, const Maybe& present) {
  const ScalarType type = check_gate(x, weight, scale, shift, fc_weight, fc_bias, small, present, on_gpu(device));
  GateParams p = {};
  p.activation = int(parse_activation("gate", activation));
  p.n = int(x.size(0)), p.c = int(x.size(1)), p.h = int(x.size(2)), p.w = int(x.size(3));
  p.gates = int(fc_weight.size(0)), p.small_gate = small;
  require(p.gates >= 1 && p.gates <= kPaths,
          "gate: fc_weight: wanted 1 to 3 rows on CUDA, got " + std::to_string(p.gates));
  check_size("gate: x", p.n, p.c, p.h, p.w);
  CallBuilder build(device, limits, type);
  p.out = build.out({p.n, p.gates}, type);
  if (p.n == 0) return build.take();
  p.present = build.opened(present);
  p.x = build.map(x);
  p.gate = build.matrix(weight, scale, shift);
  p.fc_weight = build.widened(fc_weight), p.fc_bias = build.widened(fc_bias);
  const int64_t tasks = gate_tiling(p, dtype_of(type)).tasks;
  p.partials = build.floats(p.n * tasks * p.gate.n_pad);
  p.arrivals = build.zeros(p.n);
  build.launch_prepare("gate");
  build.launch("gate", "gate", gate_shape, p);
  return build.take();
}

inline OpCall route_call(const Device& device, const DeviceLimits& limits, const Tensor& alphas, const Tensor& present,
                         const Tensor& path_exists, const Tensor& slots) {
  const ScalarType type = check_route(alphas, present, path_exists, slots, on_gpu(device));
  const int64_t n = alphas.size(0);
  require(n <= INT32_MAX / kPaths, "route: alphas: wanted at most 715827882 samples, got " + std::to_string(n));
  CallBuilder build(device, limits, type);
  RouteParams p = {};
  const auto ints = [&](std::initializer_list<int64_t> sizes) {
    return static_cast<int*>(build.out(sizes, ScalarType::Int));
  };
  const auto flags = [&] { return static_cast<uint8_t*>(build.out({n, kScales}, ScalarType::Bool)); };
  p.alphas = build.values(alphas), p.slots = static_cast<const int*>(build.values(slots));
  p.present = static_cast<const uint8_t*>(build.values(present));
  p.path_exists = static_cast<const uint8_t*>(build.values(path_exists));
  p.masked = build.out({n, kScales, kPaths}, type);
  p.open = ints({kScales, n}), p.open_count = ints({kScales});
  p.path_open = ints({kScales, kPaths, n}), p.path_count = ints({kScales, kPaths});
  p.closed = flags(), p.next_present = flags();
  p.next_slots = ints({n, kScales});
  p.n = int(n);
  build.launch("route", "route", route_shape, p);  // counts are written for no samples too
  return build.take();
}

}  // namespace dynroute::cuda
