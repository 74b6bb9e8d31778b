// gate_train and its backward. The product goes through the kernel of a stage without a depthwise; what is the gate's
// own is the pooling of what BatchNorm and ReLU make of it, and a backward that starts from one gradient per sample and
// channel.
#include <torch/csrc/stable/library.h>

#include <numeric>

#include "cpu/kernels/gate_epilogue.h"
#include "train_chain.h"

namespace dynroute {
namespace {

struct GateOptions {
  Activation activation;
  std::vector<int64_t> columns;  // of the alphas that each logit makes
  bool small, frozen;
  ScalarType raw;  // of the product
};

struct GateShape {
  int n, c_in, h_in, w_in, c, h, w, gates;
  GateShape(const Tensor& x, const Tensor& weight, const Tensor& fc_weight, bool small)
      : n(int(x.size(0))),
        c_in(int(x.size(1))),
        h_in(int(x.size(2))),
        w_in(int(x.size(3))),
        c(int(weight.size(0))),
        h(gate_side(h_in, small)),
        w(gate_side(w_in, small)),
        gates(int(fc_weight.size(0))) {}
  int64_t pixels() const { return int64_t(h) * w; }
};

using GateForward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
GateForward run_gate_forward(const Tensor& x_in, const Tensor& weight_in, const Tensor& gamma, const Tensor& beta,
                             const Tensor& running_mean, const Tensor& running_var, const Tensor& fc_weight,
                             const Tensor& fc_bias, const GateOptions& options, const Ranks& ranks, double eps) {
  const GateShape shape(x_in, weight_in, fc_weight, options.small);
  const int n = shape.n, c = shape.c, gates = shape.gates;
  const TorchParallel parallel;
  CallCounters counters;
  const TrainKernels<T>& kernels = kernels_without_tiles<T>().train;
  const ScalarType type = x_in.scalar_type();
  const Tensor x = nhwc(x_in);
  const Values<T> weight(weight_in), gammas(gamma), betas(beta), means_in(running_mean), variances_in(running_var);
  const Values<T> fc_weights(fc_weight), fc_biases(fc_bias);
  PackedWeights<T> packed(PackedWeights<T>::pointwise_size(c, shape.c_in), 0);
  const std::vector<T> ones(size_t(c), T(1)), zeros(size_t(c), T(0));
  const Pointwise<T> product = packed.pointwise(weight.data(), ones.data(), zeros.data(), c, shape.c_in);
  packed.run(parallel);

  Tensor alphas = new_tensor({n, kPaths}, type);
  Tensor raw = new_tensor({n, c, shape.h, shape.w}, options.raw, true);
  Tensor stats = new_tensor({1, kStatistics, c}, type);
  Tensor pool = new_tensor({n, kPoolSums, c}, type);
  const int rows = band_rows(n, shape.h), tasks = tasks_of(n, shape.h, rows);
  static_assert(kPoolSums == 3, "both kernels leave as many sums");
  Tensor sums = new_tensor({std::max(tasks, 1), kPoolSums, c}, type);
  T* sums_data = sums.template mutable_data_ptr<T>();
  Runner runner(parallel);
  TaskList list;

  const T* map = x.template const_data_ptr<T>();
  Tensor quarter = new_tensor({options.small ? n : 0, shape.c_in, shape.h, shape.w}, type, true);
  if (options.small) {
    T* to = quarter.template mutable_data_ptr<T>();
    const GateQuarterJob<T> job = {map, to, shape.h_in, shape.w_in, shape.h, shape.w, shape.c_in, rows};
    list.add(kernels.gate_quarter, job, tasks);
    runner.run(list);
    map = to;
  }
  std::vector<int> samples(static_cast<size_t>(n));
  std::iota(samples.begin(), samples.end(), 0);
  TrainForwardJob<T> forward = {};
  TrainStage<T>& stage = forward.stage;
  stage.input.x = {map, nullptr};
  stage.c_in = shape.c_in, stage.c_out = c, stage.stride = 1;
  stage.h_in = stage.h_out = shape.h, stage.w_in = stage.w_out = shape.w;
  stage.samples = samples.data(), stage.n = n;
  forward.pointwise = product;
  forward.y = raw_out<T>(raw);
  forward.sums = sums_data, forward.band_rows = rows, forward.macs = counters.macs;
  list.add(kernels.forward, forward, tasks);
  runner.run(list);

  std::vector<double> means(static_cast<size_t>(c)), variances(static_cast<size_t>(c));
  const bool of_batch = !options.frozen && n > 0;
  if (of_batch) merge_statistics(sums_data, tasks, shape.h, shape.w, rows, c, means.data(), variances.data());
  T* mean = stats.template mutable_data_ptr<T>();
  std::vector<T> scale(static_cast<size_t>(c)), shift(static_cast<size_t>(c));
  Moments found = {int64_t(n) * shape.h * shape.w, c, means.data(), variances.data()};
  ranks.merge({&found});
  finish_norm({gammas.data(), betas.data(), means_in.data(), variances_in.data(), c}, means.data(), variances.data(),
              found.pixels, options.frozen, eps, mean, scale.data(), shift.data());
  const GatePoolJob<T> pooling = {forward.y, scale.data(), shift.data(), mean, sums_data, shape.h, shape.w, c, rows};
  list.add(kernels.gate_pool, pooling, tasks);
  runner.run(list);

  const int bands = n > 0 ? tasks / n : 0, stride = kPoolSums * c;
  T *of_sample = pool.template mutable_data_ptr<T>(), *to = alphas.template mutable_data_ptr<T>();
  std::vector<T> made(static_cast<size_t>(gates));
  for (int i = 0; i < n; ++i, of_sample += stride, to += kPaths) {
    const T* partials = sums_data + int64_t(i) * bands * stride;
    for (int k = 0; k < stride; ++k) {
      double sum = 0;
      for (int band = 0; band < bands; ++band) sum += double(partials[int64_t(band) * stride + k]);
      of_sample[k] = T(k < c ? sum / double(shape.pixels()) : sum);
    }
    finish_gate(of_sample + kPooled * c, 1, stride, c, 1, fc_weights.data(), fc_biases.data(), gates,
                options.activation, made.data());
    std::fill_n(to, kPaths, T(0));
    for (int g = 0; g < gates; ++g) to[options.columns[size_t(g)]] = made[size_t(g)];
  }
  *counters.macs += int64_t(n) * c * gates;
  return {alphas, raw, stats, pool};
}

// Gradients of a sample's logits from those of its alphas.
template <class T>
void grad_of_logits(const T* alphas, const T* grad, const GateOptions& options, double* out) {
  const size_t gates = options.columns.size();
  double along = 0;  // softmax's sum is one whatever the logits are
  if (options.activation == Activation::kSoftmax)
    for (const int64_t column : options.columns) along += double(alphas[column]) * double(grad[column]);
  for (size_t g = 0; g < gates; ++g) {
    const double a = double(alphas[options.columns[g]]), of_alpha = double(grad[options.columns[g]]);
    if (options.activation == Activation::kTanh) out[g] = a > 0 ? of_alpha * (1 - a * a) : 0;
    else if (options.activation == Activation::kSigmoid) out[g] = of_alpha * a * (1 - a);
    else out[g] = a * (of_alpha - along);
  }
}

// x's gradient, and in one tensor those of weight (if wanted), gamma, beta, fc_weight and fc_bias.
using GateBackward = std::tuple<Tensor, Tensor>;

template <class T>
GateBackward run_gate_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& weight_in, const Tensor& gamma,
                               const Tensor& beta, const Tensor& fc_weight, const Tensor& alphas_in,
                               const Tensor& raw_in, const Tensor& stats_in, const Tensor& pool_in,
                               const GateOptions& options, const Ranks& ranks, const std::vector<bool>& wanted) {
  const GateShape shape(x_in, weight_in, fc_weight, options.small);
  const int n = shape.n, c = shape.c, c_in = shape.c_in, gates = shape.gates;
  const bool want_x = wanted[0], want_weight = wanted[1];
  const TorchParallel parallel;
  CallCounters counters;
  const TrainKernels<T>& kernels = kernels_without_tiles<T>().train;
  const ScalarType type = x_in.scalar_type();
  const Tensor x = nhwc(x_in), raw = nhwc(raw_in);
  const Values<T> grad(grad_in), weight(weight_in), gammas(gamma), betas(beta), fc_weights(fc_weight);
  const Values<T> alphas(alphas_in), stats(stats_in), pool(pool_in);
  Tensor grad_x = new_tensor({want_x ? n : 0, c_in, shape.h_in, shape.w_in}, type, true);
  const int64_t product_size = int64_t(c) * c_in, fc_size = int64_t(gates) * c;
  FlatGradients<T> flat((want_weight ? product_size : 0) + 2 * c + fc_size + gates, type);
  T* grad_weight = want_weight ? flat.take(product_size) : nullptr;
  T *grad_gamma = flat.take(c), *grad_beta = flat.take(c);
  T *grad_fc_weight = flat.take(fc_size), *grad_fc_bias = flat.take(gates);

  // from the alphas to the mean of each sample and channel, and to the gradients that hang on nothing else
  const T *mean = stats.data(), *invstd = mean + kInvstd * c;
  std::vector<T> of_pixels(size_t(n) * c);  // the gradient of every pixel that the ReLU lets through
  std::vector<double> of_logits(static_cast<size_t>(gates)), of_bias(static_cast<size_t>(gates), 0.0);
  std::vector<double> of_fc(size_t(gates) * c, 0.0), first(size_t(c), 0.0), second(size_t(c), 0.0);
  for (int i = 0; i < n; ++i) {
    grad_of_logits(alphas.data() + int64_t(i) * kPaths, grad.data() + int64_t(i) * kPaths, options, of_logits.data());
    const T* of_sample = pool.data() + int64_t(i) * kPoolSums * c;
    for (int g = 0; g < gates; ++g) {
      of_bias[size_t(g)] += of_logits[size_t(g)];
      double* to = of_fc.data() + int64_t(g) * c;
      for (int k = 0; k < c; ++k) to[k] += of_logits[size_t(g)] * double(of_sample[kPooled * c + k]);
    }
    T* to = of_pixels.data() + int64_t(i) * c;
    for (int k = 0; k < c; ++k) {
      double sum = 0;
      for (int g = 0; g < gates; ++g) sum += of_logits[size_t(g)] * double(fc_weights.data()[int64_t(g) * c + k]);
      to[k] = T(sum / double(shape.pixels()));
      first[size_t(k)] += double(to[k]) * double(of_sample[kAbove * c + k]);
      second[size_t(k)] += double(to[k]) * double(of_sample[kApart * c + k]) * double(invstd[k]);
    }
  }
  *counters.macs += 2 * int64_t(n) * c * gates;
  const auto rounded = [](double v) { return T(v); };
  std::transform(of_fc.begin(), of_fc.end(), grad_fc_weight, rounded);
  std::transform(of_bias.begin(), of_bias.end(), grad_fc_bias, rounded);
  const int64_t own_pixels = n * shape.pixels();
  NormSums all(own_pixels, c, first.data(), second.data());
  ranks.add({&all});
  const NormBackward<T> made({gammas.data(), betas.data(), nullptr, nullptr, c}, invstd, first.data(), second.data(),
                             own_pixels, options.frozen, grad_gamma, grad_beta, &all);
  if (!want_x && !want_weight) return {grad_x, flat.tensor};

  std::vector<T> scale(static_cast<size_t>(c)), shift(static_cast<size_t>(c));
  affine_of(gammas.data(), betas.data(), mean, invstd, c, scale.data(), shift.data());
  GateProductJob<T> job = {};
  job.x = x.template const_data_ptr<T>(), job.y = raw_of<T>(raw), job.grad = of_pixels.data();
  job.scale = scale.data(), job.shift = shift.data(), job.mean = mean;
  job.gain = made.gain.data(), job.slope = made.slope.data(), job.mean_grad = made.mean_grad.data();
  PackedWeights<T> packed(PackedWeights<T>::pointwise_size(c_in, c), 0);
  if (want_x) {
    job.transposed = packed.transposed(weight.data(), c_in, c), job.grad_x = grad_x.template mutable_data_ptr<T>();
    packed.run(parallel);
  }
  // a part clears and adds up as much as the weights are: on small maps that is more than the product itself
  constexpr int64_t kFewestPixels = 64;
  const int64_t most = std::max<int64_t>(n * shape.pixels() / kFewestPixels, 1);
  const int parts = int(std::min<int64_t>(product_parts(int64_t(n) * shape.h, product_size), most));
  Tensor partial = new_tensor({want_weight ? parts * product_size : 0}, type);
  if (want_weight) job.grad_weight = partial.template mutable_data_ptr<T>();
  job.n = n, job.h_in = shape.h_in, job.w_in = shape.w_in, job.h = shape.h, job.w = shape.w;
  job.c_in = c_in, job.c_out = c, job.parts = parts, job.small = options.small, job.macs = counters.macs;
  Runner runner(parallel);
  TaskList list;
  list.add(kernels.gate_product, job, parts);
  runner.run(list);
  if (want_weight) reduce_parts(list, static_cast<const T*>(job.grad_weight), parts, product_size, grad_weight);
  runner.run(list);
  return {grad_x, flat.tensor};
}

GateForward gate_train(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& beta,
                       const Tensor& running_mean, const Tensor& running_var, const Tensor& fc_weight,
                       const Tensor& fc_bias, const std::string& activation, const std::vector<int64_t>& columns,
                       bool small, bool frozen, const std::string& group, double eps, bool narrow) {
  const std::string op = "gate_train";
  const TrainTypes types = train_types_on_cpu(op, x, narrow);
  check_gate_train(op, x, weight, {gamma, beta, running_mean, running_var}, fc_weight, columns, small, types);
  check(op + ": fc_bias", fc_bias, types.weight, {fc_weight.size(0)});
  const GateOptions options = {parse_activation(op, activation), columns, small, frozen, types.raw};
  const auto run = [&](auto t) {
    return run_gate_forward<decltype(t)>(x, weight, gamma, beta, running_mean, running_var, fc_weight, fc_bias, options,
                                         Ranks(op, group, frozen), eps);
  };
  return types.map == ScalarType::Double ? run(double{}) : run(float{});
}

GateBackward gate_train_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& gamma,
                                 const Tensor& beta, const Tensor& fc_weight, const Tensor& alphas, const Tensor& raw,
                                 const Tensor& stats, const Tensor& pool, const std::string& activation,
                                 const std::vector<int64_t>& columns, bool small, bool frozen, const std::string& group,
                                 bool narrow, const std::vector<bool>& wanted) {
  const std::string op = "gate_train_backward";
  const TrainTypes types = train_types_on_cpu(op, x, narrow);
  check_gate_train(op, x, weight, {gamma, beta}, fc_weight, columns, small, types);
  check_wanted(op, wanted, 2);
  const GateOptions options = {parse_activation(op, activation), columns, small, frozen, types.raw};
  const GateShape shape(x, weight, fc_weight, small);
  check_gate_train_backward(op, grad, alphas, raw, stats, pool, {shape.n, shape.c, shape.h, shape.w}, types);
  const auto run = [&](auto t) {
    return run_gate_backward<decltype(t)>(grad, x, weight, gamma, beta, fc_weight, alphas, raw, stats, pool, options,
                                          Ranks(op, group, frozen), wanted);
  };
  return types.map == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  m.impl("gate_train", TORCH_BOX(&dynroute::gate_train));
  m.impl("gate_train_backward", TORCH_BOX(&dynroute::gate_train_backward));
}
