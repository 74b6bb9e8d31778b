// gate_train and its backward on CUDA. The product goes through the kernels of a stage without a depthwise; what is the
// gate's own is the pooling of what BatchNorm and ReLU make of it, and a backward that starts from one gradient per
// sample and channel.
#pragma once
#include "train_chain.h"

namespace dynroute::cuda {

// What the product reads: x, or x at a quarter of its size.
inline TrainSource gate_source(const void* x, const Tensor& shape, bool small) {
  TrainSource made = {};
  made.map = x, made.kind = small ? kQuarter : kAsIs, made.c = int(shape.size(1));
  made.from_h = int(shape.size(2)), made.from_w = int(shape.size(3));
  made.h = gate_side(made.from_h, small), made.w = gate_side(made.from_w, small);
  return made;
}
inline void set_columns(int (&to)[kPaths], const std::vector<int64_t>& columns) {
  for (size_t i = 0; i < columns.size(); ++i) to[i] = int(columns[i]);
}

// outs: alphas, raw, statistics, pool.
inline OpCall gate_train_call(const Device& device, const DeviceLimits& limits, const Tensor& x, const Tensor& weight,
                              const Tensor& gamma, const Tensor& beta, const Tensor& running_mean,
                              const Tensor& running_var, const Tensor& fc_weight, const Tensor& fc_bias,
                              const std::string& activation, const std::vector<int64_t>& columns, bool small,
                              bool frozen, const std::string& group, double eps, bool narrow) {
  const char* const op = "gate_train";
  const TrainTypes types = train_types_on_gpu(op, x, narrow, device);
  check_gate_train(op, x, weight, {gamma, beta, running_mean, running_var}, fc_weight, columns, small, types);
  check("gate_train: fc_bias", fc_bias, types.weight, {fc_weight.size(0)}, device);
  const int which = int(parse_activation(op, activation));
  check_size("gate_train: x", x.size(0), x.size(1), x.size(2), x.size(3));
  TrainBuilder build(op, types, device, limits, x.size(0), group, frozen);
  const TrainSource source = gate_source(build.map(x), x, small);
  const int n = build.n(), c = int(weight.size(0)), pixels = source.h * source.w, runs = train_runs(pixels);
  float* const alphas = build.float_out({n, kPaths});
  void* const raw = build.map_out(n, c, source.h, source.w);
  float* const stats = build.float_out({1, kStatistics, c});
  float* const pool = build.float_out({n, kPoolSums, c});
  const Norm norm = build.norm(gamma, beta, running_mean, running_var, stats);
  const Matrix product = build.product(weight, false);
  build.launch_prepare();
  build.forward({{source, nullptr, product, raw, norm, {}, 1, source.h, source.w}}, eps);
  if (n == 0) return build.take();
  TrainGatePoolParams pooling = {};
  pooling.of = {raw, norm.mean(), norm.invstd(), norm.affine.scale, norm.affine.shift, nullptr, 1};
  pooling.partials = build.floats(int64_t(n) * runs * kPoolSums * c);
  pooling.n = n, pooling.pixels = pixels, pooling.c = c;
  build.start("train_gate_pool", train_gate_pool_shape, pooling);
  TrainGateEndParams end = {};
  end.partials = pooling.partials, end.fc_weight = build.floats_of(fc_weight), end.fc_bias = build.floats_of(fc_bias);
  end.pool = pool, end.alphas = alphas, end.n = n, end.pixels = pixels, end.runs = runs, end.c = c;
  end.gates = int(columns.size()), end.activation = which;
  set_columns(end.columns, columns);
  build.start("train_gate_end", train_gate_end_shape, end);
  return build.take();
}

// outs: x's gradient, and in one tensor those of weight (if wanted), gamma, beta, fc_weight and fc_bias.
inline OpCall gate_train_backward_call(const Device& device, const DeviceLimits& limits, const Tensor& grad,
                                       const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& beta,
                                       const Tensor& fc_weight, const Tensor& alphas, const Tensor& raw,
                                       const Tensor& stats, const Tensor& pool, const std::string& activation,
                                       const std::vector<int64_t>& columns, bool small, bool frozen,
                                       const std::string& group, bool narrow, const std::vector<bool>& wanted) {
  const char* const op = "gate_train_backward";
  const TrainTypes types = train_types_on_gpu(op, x, narrow, device);
  check_gate_train(op, x, weight, {gamma, beta}, fc_weight, columns, small, types);
  check_wanted(op, wanted, 2);
  const int which = int(parse_activation(op, activation));
  TrainBuilder build(op, types, device, limits, x.size(0), group, frozen);
  const TrainSource source = gate_source(build.map(x), x, small);
  const int n = build.n(), c = int(weight.size(0)), gates = int(columns.size());
  check_gate_train_backward(op, grad, alphas, raw, stats, pool, {n, c, source.h, source.w}, types);
  void* const grad_x = build.map_out(wanted[0] ? n : 0, source.c, source.from_h, source.from_w);
  build.flat((wanted[1] ? weight.numel() : 0) + 2 * c + fc_weight.numel() + gates);
  float* const grad_weight = wanted[1] ? build.room(weight.numel()) : nullptr;
  float *const grad_gamma = build.room(c), *const grad_beta = build.room(c);
  TrainGateBeginParams begin = {};
  begin.grad_fc_weight = build.room(fc_weight.numel()), begin.grad_fc_bias = build.room(gates);
  const Norm norm = build.norm(gamma, beta, build.floats_of(stats));
  const Matrix transposed = build.product(weight, true);
  build.launch_prepare();

  begin.grad = build.floats_of(grad), begin.alphas = build.floats_of(alphas), begin.pool = build.floats_of(pool);
  begin.fc_weight = build.floats_of(fc_weight), begin.invstd = norm.invstd();
  begin.of_samples = build.some(int64_t(n) * c), begin.partials = build.some(int64_t(n) * 2 * c);
  begin.n = n, begin.pixels = source.h * source.w, begin.c = c, begin.gates = gates, begin.activation = which;
  set_columns(begin.columns, columns);
  build.start("train_gate_begin", train_gate_begin_shape, begin);
  TrainGradient gradient = {};
  gradient.of = {build.map(raw), norm.mean(), norm.invstd(), norm.affine.scale, norm.affine.shift, nullptr, 1};
  gradient.of_samples = begin.of_samples, gradient.h = source.h, gradient.w = source.w, gradient.c = c;
  gradient = build.backward({{gradient, norm, {begin.partials, 1, 2, 0}, {}, grad_gamma, grad_beta}})[0];
  if (wanted[0]) {
    TrainProductParams product = {};
    product.n = n;
    product.job[0] = {gradient,           transposed,    grad_x,        nullptr,       {},
                      source.from_h,      source.from_w, small ? 4 : 1, small ? 1 : 0, small ? 2 : 0,
                      small ? 0.25f : 1.f};
    build.start("train_product", train_product_shape, product);
  }
  if (wanted[1]) {
    TrainOuterParams outer = {};
    build.outer(outer, 0, gradient, source, nullptr, 1, {}, grad_weight);
    build.start("train_outer", train_outer_shape, outer);
  }
  build.launch_reduce();
  return build.take();
}

}  // namespace dynroute::cuda
