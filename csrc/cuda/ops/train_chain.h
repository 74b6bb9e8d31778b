// A chain of training stages on CUDA, forward and backward: [depthwise ->] product -> BatchNorm, ReLU between them.
// sepconv_train and transform_train are chains; node_train begins with one.
#pragma once
#include "train_builder.h"

namespace dynroute::cuda {

struct Chain {
  const void* x;
  const void* raw;  // [stages][n][h * w * c] T
  int h_in, w_in, c_in, h, w, c, stride, stages;
  bool relu_input;    // ReLU(x) is what the first stage reads
  int64_t raw_bytes;  // of a stage
  std::vector<Norm> norms;
  std::vector<Matrix> products;    // or their transposes
  std::vector<const float*> taps;  // empty: no depthwise
  TrainSamples samples;

  Chain(TrainBuilder& build, const Tensor& x_in, const Tensors& depthwise, const Tensors& pointwise, int64_t stride_in,
        bool relu_in, bool backward, DType type)
      : x(build.map(x_in)),
        raw(nullptr),
        h_in(int(x_in.size(2))),
        w_in(int(x_in.size(3))),
        c_in(int(x_in.size(1))),
        h(strided(h_in, int(stride_in))),
        w(strided(w_in, int(stride_in))),
        c(int(pointwise[0].size(0))),
        stride(int(stride_in)),
        stages(int(pointwise.size())),
        relu_input(relu_in),
        raw_bytes(int64_t(build.n()) * h * w * c * bytes_of(type)) {
    for (const Tensor& weight : pointwise) products.push_back(build.product(weight, backward));
    for (const Tensor& weight : depthwise) taps.push_back(build.taps(weight));
  }
  const float* taps_of(int k) const { return taps.empty() ? nullptr : taps[size_t(k)]; }
  const void* raw_of(int k) const { return raw ? static_cast<const char*>(raw) + k * raw_bytes : nullptr; }
  TrainSource source(int k) const {
    TrainSource made = {};
    if (k == 0) {
      made.map = x, made.kind = relu_input ? kRectified : kAsIs, made.h = h_in, made.w = w_in, made.c = c_in;
    } else {
      const Affine& affine = norms[size_t(k - 1)].affine;
      made.map = raw_of(k - 1), made.kind = kNormed, made.h = h, made.w = w, made.c = c;
      made.scale = affine.scale, made.shift = affine.shift;
    }
    return made;
  }
  // A stage's raw output; relu: one behind its BatchNorm, that also read `residual`.
  TrainNormed normed(int k, bool relu = false, const void* residual = nullptr) const {
    const Norm& norm = norms[size_t(k)];
    return {raw_of(k), norm.mean(), norm.invstd(), norm.affine.scale, norm.affine.shift, residual, relu};
  }
};

inline void forward_stages(TrainBuilder& build, const Chain& chain, double eps) {
  for (int k = 0; k < chain.stages; ++k)
    build.forward({{chain.source(k), chain.taps_of(k), chain.products[size_t(k)], const_cast<void*>(chain.raw_of(k)),
                    chain.norms[size_t(k)], chain.samples, k == 0 ? chain.stride : 1, chain.h, chain.w}},
                  eps);
}

// What a chain's backward begins with, and what is added to the input's gradient besides.
struct ChainEnd {
  TrainNormed of;
  const void* grad;
  const float* weight;  // of grad, by sample, or null
  TrainBuilder::Sums sums;
  const void* added;  // [n][h_in * w_in * c_in], behind `passed`
  TrainNormed passed;
  const void* more;
  const float* more_weight;
};
// Where gradients go; null: not wanted.
struct ChainGradients {
  void* x;
  std::vector<float*> depthwise, pointwise, gamma, beta;
};

// The room that they take in a flat tensor, in its order; of the chain's weights, and of its BatchNorms.
inline void take_weights(TrainBuilder& build, const Tensors& depthwise, const Tensors& pointwise, bool want_depthwise,
                         bool want_pointwise, ChainGradients& to) {
  for (const Tensor& weight : depthwise) to.depthwise.push_back(want_depthwise ? build.room(weight.numel()) : nullptr);
  for (const Tensor& weight : pointwise) to.pointwise.push_back(want_pointwise ? build.room(weight.numel()) : nullptr);
}
inline int64_t sizes_of(const Tensors& weights) {
  int64_t size = 0;
  for (const Tensor& weight : weights) size += weight.numel();
  return size;
}

inline void backward_stages(TrainBuilder& build, const Chain& chain, const ChainEnd& end, const ChainGradients& grads) {
  TrainNormed of = end.of;
  const void* grad = end.grad;
  const float* weight = end.weight;
  TrainBuilder::Sums sums = end.sums;
  for (int k = chain.stages - 1; k >= 0; --k) {
    const size_t at = size_t(k);
    const TrainSource source = chain.source(k);
    const float* const taps = chain.taps_of(k);
    const int stride = k == 0 ? chain.stride : 1;
    TrainGradient gradient = {};
    gradient.of = of, gradient.grad = grad, gradient.weight = weight;
    gradient.h = chain.h, gradient.w = chain.w, gradient.c = chain.c;
    gradient = build.backward({{gradient, chain.norms[at], sums, chain.samples, grads.gamma[at], grads.beta[at]}})[0];
    float* const of_taps = taps ? grads.depthwise[at] : nullptr;
    void* const grad_x = k == 0 ? grads.x : taps ? build.map_scratch(source.h, source.w, source.c) : nullptr;
    if (grads.pointwise[at]) {
      TrainOuterParams params = {};
      build.outer(params, 0, gradient, source, taps, stride, chain.samples, grads.pointwise[at]);
      build.start("train_outer", train_outer_shape, params);
    }
    if (!grad_x && !of_taps) break;  // nothing before wants anything
    void* const of_product = taps ? build.map_scratch(chain.h, chain.w, source.c) : grad_x;
    TrainProductParams product = {};
    product.n = build.n();
    product.job[0] = {gradient, chain.products[at], of_product, nullptr, chain.samples, chain.h, chain.w, 1, 0, 0, 1};
    if (!taps) {
      TrainProductJob& job = product.job[0];
      job.h = source.h, job.w = source.w, job.step = stride, job.rectified = chain.relu_input ? chain.x : nullptr;
    }
    build.start("train_product", train_product_shape, product);
    if (!taps) break;

    TrainDepthwiseParams filter = {};
    filter.source = source, filter.grad = of_product, filter.taps = taps, filter.samples = chain.samples;
    filter.n = build.n(), filter.h = chain.h, filter.w = chain.w, filter.stride = stride, filter.grad_x = grad_x;
    if (k == 0)
      filter.added = end.added, filter.passed = end.passed, filter.more = end.more,
      filter.more_weight = end.more_weight;
    else filter.mean = chain.norms[at - 1].mean(), filter.invstd = chain.norms[at - 1].invstd();
    const int runs = taps_runs(source.h, source.w), row = kDepthwiseRows * source.c;
    if (k > 0 || of_taps) filter.partials = build.some(int64_t(build.n()) * runs * row);
    build.start("train_depthwise", train_depthwise_shape, filter);
    if (of_taps) build.reduce({filter.partials, of_taps, chain.samples, 0, runs, 9 * source.c, row, source.c});
    if (k == 0) break;
    of = chain.normed(k - 1), grad = grad_x, weight = nullptr;
    sums = {filter.partials, runs, kDepthwiseRows, kDepthwiseSums};
  }
  build.launch_reduce();
}

inline int64_t batch_bytes(int64_t n, int64_t c, int64_t h, int64_t w, DType type) {
  return n * c * h * w * bytes_of(type);
}

// Options of an operator that is a chain.
struct ChainOptions {
  int64_t stride;
  bool relu_input, residual, final_relu, frozen;
  const std::string& group;
};

// outs: output, raw outputs [stages * n, c, h, w], statistics [stages, 3, c].
inline OpCall chain_forward_call(const char* op, const Tensor& x, const Tensors& depthwise, const Tensors& pointwise,
                                 const Tensors& gamma, const Tensors& beta, const Tensors& mean, const Tensors& var,
                                 const Maybe& open, const ChainOptions& options, double eps, const TrainTypes& types,
                                 const DeviceLimits& limits) {
  TrainBuilder build(op, types, types.device, limits, x.size(0), options.group, options.frozen);
  const DType type = dtype_of(types.map);
  Chain chain(build, x, depthwise, pointwise, options.stride, options.relu_input, false, type);
  const int n = build.n();
  check_size(std::string(op) + ": x", n, chain.c_in, chain.h_in, chain.w_in);
  check_size(std::string(op) + ": output", n, chain.c, chain.h, chain.w);
  void* const out = build.map_out(n, chain.c, chain.h, chain.w);
  void* const raw = build.map_out(int64_t(chain.stages) * n, chain.c, chain.h, chain.w);
  float* const stats = build.float_out({chain.stages, kStatistics, chain.c});
  chain.raw = raw;
  chain.samples = build.masked(open);
  for (size_t k = 0; k < gamma.size(); ++k)
    chain.norms.push_back(build.norm(gamma[k], beta[k], mean[k], var[k], stats + int64_t(k) * kStatistics * chain.c));
  build.launch_prepare();
  forward_stages(build, chain, eps);
  TrainApplyParams apply = {};
  const Affine& affine = chain.norms.back().affine;
  apply.n = n;
  apply.job[0].raw = chain.raw_of(chain.stages - 1), apply.job[0].scale = affine.scale,
  apply.job[0].shift = affine.shift;
  apply.job[0].x = options.residual ? chain.x : nullptr, apply.job[0].out = out, apply.job[0].samples = chain.samples;
  apply.job[0].cleared = open ? raw : nullptr, apply.job[0].stages = chain.stages;
  apply.job[0].pixels = chain.h * chain.w, apply.job[0].c = chain.c, apply.job[0].relu = options.final_relu;
  build.start("train_apply", train_apply_shape, apply);
  return build.take();
}

// outs: x's gradient, of no samples where not wanted; those of the weights in one tensor. wanted: x, depthwise,
// pointwise.
inline OpCall chain_backward_call(const char* op, const Tensor& grad, const Tensor& x, const Tensors& depthwise,
                                  const Tensors& pointwise, const Tensors& gamma, const Tensors& beta,
                                  const Tensor& raw, const Tensor& stats, const Maybe& open,
                                  const ChainOptions& options, const std::vector<bool>& wanted, const TrainTypes& types,
                                  const DeviceLimits& limits) {
  TrainBuilder build(op, types, types.device, limits, x.size(0), options.group, options.frozen);
  Chain chain(build, x, depthwise, pointwise, options.stride, options.relu_input, true, dtype_of(types.map));
  const int n = build.n(), last = chain.stages - 1;
  ChainGradients grads = {};
  grads.x = build.map_out(wanted[0] ? n : 0, chain.c_in, chain.h_in, chain.w_in);
  if (!wanted[0]) grads.x = nullptr;
  build.flat((wanted[1] ? sizes_of(depthwise) : 0) + (wanted[2] ? sizes_of(pointwise) : 0) + 2 * sizes_of(gamma));
  take_weights(build, depthwise, pointwise, wanted[1], wanted[2], grads);
  for (const Tensor& one : gamma) grads.gamma.push_back(build.room(one.numel()));
  for (const Tensor& one : beta) grads.beta.push_back(build.room(one.numel()));
  chain.raw = build.map(raw);
  chain.samples = build.masked(open, open ? grads.x : nullptr, int64_t(chain.h_in) * chain.w_in * chain.c_in);
  const float* const statistics = build.floats_of(stats);
  for (size_t k = 0; k < gamma.size(); ++k)
    chain.norms.push_back(build.norm(gamma[k], beta[k], statistics + int64_t(k) * kStatistics * chain.c));
  build.launch_prepare();

  ChainEnd end = {};
  end.of = chain.normed(last, options.final_relu, options.residual ? chain.x : nullptr);
  end.grad = build.map(grad);
  const int runs = train_runs(chain.h * chain.w);
  TrainSumsParams sums = {};
  sums.n = n;
  sums.job[0] = {end.of,  end.grad,      nullptr,           build.some(int64_t(n) * runs * 2 * chain.c),
                 nullptr, chain.samples, chain.h * chain.w, chain.c};
  build.start("train_sums", train_sums_shape, sums);
  end.sums = {sums.job[0].partials, runs, 2, 0};
  if (options.residual) end.added = end.grad, end.passed = end.of;
  backward_stages(build, chain, end, grads);
  return build.take();
}

}  // namespace dynroute::cuda
