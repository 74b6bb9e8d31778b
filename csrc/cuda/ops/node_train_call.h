// node_train and its backward on CUDA: a node's cell, and what its paths make of it.
#pragma once
#include "train_chain.h"

namespace dynroute::cuda {

// A path of a node: a product of every stride-th pixel of H.
struct Path {
  bool is;
  int stride, h, w, c, norm;  // norm: where its BatchNorm stands in the lists
  const float* weight;        // [n], its alphas
  TrainSamples samples;
  Matrix product;  // or its transpose
  void* raw;
  int pixels() const { return h * w; }
};

// What both directions have in common.
struct NodeCall {
  TrainBuilder build;
  Chain chain;
  Path up, down;
  const float* factor;
  TrainPrepareParams prepared;

  NodeCall(const char* op, const Tensor& x, const Tensor& alphas, const NodeTensors& t, const Maybe& factor_in,
           double bridge, bool skip, bool backward, const TrainTypes& types, const DeviceLimits& limits,
           const std::string& group, bool frozen)
      : build(op, types, types.device, limits, x.size(0), group, frozen),
        chain(build, x, t.depthwise, t.pointwise, 1, false, backward, dtype_of(types.map)),
        factor(build.floats_of(factor_in)),
        prepared(build.shares(alphas, bridge, skip, t.up.has_value(), t.down.has_value())) {
    const int n = build.n();
    check_size(std::string(op) + ": x", n, chain.c, chain.h, chain.w);
    check_size(std::string(op) + ": down", n, t.down_c(), chain.h, chain.w);
    chain.samples = prepared.open;
    up = {t.up.has_value(), 1, chain.h, chain.w, t.up_c(), t.stages(), prepared.shares.up, prepared.up, {}, nullptr};
    down = {t.down.has_value(),
            2,
            strided(chain.h, 2),
            strided(chain.w, 2),
            t.down_c(),
            t.stages() + up.is,
            prepared.shares.down,
            prepared.down,
            {},
            nullptr};
    if (up.is) up.product = build.product(*t.up, backward);
    if (down.is) down.product = build.product(*t.down, backward);
  }
  std::vector<Path*> paths() {
    std::vector<Path*> found;
    for (Path* path : {&up, &down})
      if (path->is) found.push_back(path);
    return found;
  }
  TrainSource hidden() const {
    TrainSource made = {};
    const Affine& affine = chain.norms[size_t(chain.stages - 1)].affine;
    made.map = chain.x, made.raw = chain.raw_of(chain.stages - 1), made.scale = affine.scale, made.shift = affine.shift;
    made.factor = factor, made.kind = kHidden, made.h = chain.h, made.w = chain.w, made.c = chain.c;
    return made;
  }
};

// outs: keep, up, down, raw, up's and down's raw, statistics.
inline OpCall node_train_call(const Device& device, const DeviceLimits& limits, const Tensor& x, const Tensor& alphas,
                              const Tensors& depthwise, const Tensors& pointwise, const Maybe& up, const Maybe& down,
                              const Tensors& gamma, const Tensors& beta, const Tensors& running_mean,
                              const Tensors& running_var, const Maybe& factor, double bridge, bool skip, bool frozen,
                              const std::string& group, double eps, bool narrow) {
  const char* const op = "node_train";
  const NodeTensors t = {depthwise, pointwise, up, down, gamma, beta, &running_mean, &running_var};
  const TrainTypes types = train_types_on_gpu(op, x, narrow, device);
  check_node_train(op, x, alphas, t, factor, bridge, types);
  NodeCall call(op, x, alphas, t, factor, bridge, skip, false, types, limits, group, frozen);
  TrainBuilder& build = call.build;
  Chain& chain = call.chain;
  const int n = build.n();
  void* const keep = build.map_out(n, chain.c, chain.h, chain.w);
  void* outputs[2];
  const auto map_of_path = [&](const Path& path) {
    return path.is ? build.map_out(n, path.c, path.h, path.w) : build.out({0}, types.map);
  };
  outputs[0] = map_of_path(call.up), outputs[1] = map_of_path(call.down);
  chain.raw = build.map_out(int64_t(chain.stages) * n, chain.c, chain.h, chain.w);
  call.up.raw = map_of_path(call.up), call.down.raw = map_of_path(call.down);
  float* stats = build.float_out({t.statistics()});
  std::vector<Norm> norms;
  for (size_t k = 0; k < gamma.size(); stats += kStatistics * gamma[k].size(0), ++k)
    norms.push_back(build.norm(gamma[k], beta[k], running_mean[k], running_var[k], stats));
  chain.norms.assign(norms.begin(), norms.begin() + chain.stages);
  build.launch_prepare();
  forward_stages(build, chain, eps);
  std::vector<TrainBuilder::Forward> products;
  for (const Path* path : call.paths())
    products.push_back({call.hidden(), nullptr, path->product, path->raw, norms[size_t(path->norm)], path->samples,
                        path->stride, path->h, path->w});
  build.forward(products, eps);

  TrainApplyParams apply = {};
  apply.n = n;
  const TrainSource hidden = call.hidden();
  TrainApplyJob& of_keep = apply.job[0];
  of_keep.raw = hidden.raw, of_keep.scale = hidden.scale, of_keep.shift = hidden.shift,
  of_keep.factor = factor ? hidden.factor : nullptr;
  of_keep.x = chain.x, of_keep.weight = call.prepared.shares.hidden, of_keep.x_weight = call.prepared.shares.x;
  of_keep.out = keep, of_keep.samples = chain.samples, of_keep.pixels = chain.h * chain.w, of_keep.c = chain.c,
  of_keep.relu = 1;
  for (const Path* path : call.paths()) {
    TrainApplyJob& job = apply.job[path == &call.up ? 1 : 2];
    const Affine& affine = norms[size_t(path->norm)].affine;
    job.raw = path->raw, job.scale = affine.scale, job.shift = affine.shift, job.weight = path->weight;
    job.out = outputs[path == &call.down], job.samples = path->samples, job.pixels = path->pixels(), job.c = path->c,
    job.relu = 1;
  }
  build.start("train_apply", train_apply_shape, apply);
  return build.take();
}

// outs: x's gradient, of no samples where not wanted; the alphas'; those of the weights in one tensor. wanted: x,
// weights.
inline OpCall node_train_backward_call(const Device& device, const DeviceLimits& limits, const Maybe& grad_keep,
                                       const Maybe& grad_up, const Maybe& grad_down, const Tensor& x,
                                       const Tensor& alphas, const Tensors& depthwise, const Tensors& pointwise,
                                       const Maybe& up, const Maybe& down, const Tensors& gamma, const Tensors& beta,
                                       const Tensor& raw, const Tensor& up_raw, const Tensor& down_raw,
                                       const Tensor& stats, const Maybe& factor, double bridge, bool skip, bool frozen,
                                       const std::string& group, bool narrow, const std::vector<bool>& wanted) {
  const char* const op = "node_train_backward";
  const NodeTensors t = {depthwise, pointwise, up, down, gamma, beta, nullptr, nullptr};
  const TrainTypes types = train_types_on_gpu(op, x, narrow, device);
  check_node_train(op, x, alphas, t, factor, bridge, types);
  check_wanted(op, wanted, 2);
  check_node_train_backward(op, x, t, grad_keep, grad_up, grad_down, raw, up_raw, down_raw, stats, types);
  NodeCall call(op, x, alphas, t, factor, bridge, skip, true, types, limits, group, frozen);
  TrainBuilder& build = call.build;
  Chain& chain = call.chain;
  const int n = build.n();
  ChainGradients grads = {};
  grads.x = build.map_out(wanted[0] ? n : 0, chain.c, chain.h, chain.w);
  if (!wanted[0]) grads.x = nullptr;
  float* const grad_alphas = build.float_out({n, kPaths});
  const int64_t path_weights = int64_t(chain.c) * (t.up_c() + t.down_c());
  build.flat((wanted[1] ? sizes_of(depthwise) + sizes_of(pointwise) + path_weights : 0) + 2 * sizes_of(gamma));
  take_weights(build, depthwise, pointwise, wanted[1], wanted[1], grads);
  float* grad_weights[2] = {};
  for (const Path* path : call.paths())
    if (wanted[1]) grad_weights[path == &call.down] = build.room(int64_t(path->c) * chain.c);
  for (const Tensor& one : gamma) grads.gamma.push_back(build.room(one.numel()));
  for (const Tensor& one : beta) grads.beta.push_back(build.room(one.numel()));
  chain.raw = build.map(raw);
  if (up) call.up.raw = const_cast<void*>(build.map(up_raw));
  if (down) call.down.raw = const_cast<void*>(build.map(down_raw));
  const float* statistics = build.floats_of(stats);
  std::vector<Norm> norms;
  for (size_t k = 0; k < gamma.size(); statistics += kStatistics * gamma[k].size(0), ++k)
    norms.push_back(build.norm(gamma[k], beta[k], statistics));
  chain.norms.assign(norms.begin(), norms.begin() + chain.stages);
  build.launch_prepare();

  const void* const of_outputs[2] = {build.map_of(grad_up), build.map_of(grad_down)};
  TrainSumsParams sums = {};
  sums.n = n;
  std::vector<TrainBuilder::Backward> backward;
  for (const Path* path : call.paths()) {
    const bool is_down = path == &call.down;
    const Norm& norm = norms[size_t(path->norm)];
    const int runs = train_runs(path->pixels());
    TrainGradient gradient = {};
    gradient.of = {path->raw, norm.mean(), norm.invstd(), norm.affine.scale, norm.affine.shift, nullptr, 1};
    gradient.grad = of_outputs[is_down], gradient.weight = path->weight;
    gradient.h = path->h, gradient.w = path->w, gradient.c = path->c;
    TrainSumsJob& job = sums.job[is_down];
    if (gradient.grad)
      job = {gradient.of,
             gradient.grad,
             path->weight,
             build.some(int64_t(n) * runs * 2 * path->c),
             build.some(int64_t(n) * runs * train_chunks(path->c)),
             path->samples,
             path->pixels(),
             path->c};
    backward.push_back({gradient,
                        norm,
                        {job.partials, runs, 2, 0},
                        path->samples,
                        grads.gamma[size_t(path->norm)],
                        grads.beta[size_t(path->norm)]});
  }
  if (of_outputs[0] || of_outputs[1]) build.start("train_sums", train_sums_shape, sums);
  const std::vector<TrainGradient> gradients = build.backward(backward);

  TrainHiddenParams hidden = {};
  hidden.hidden = call.hidden();
  TrainProductParams products = {};
  TrainOuterParams outer = {};
  products.n = n;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Path& path = *call.paths()[i];
    const bool is_down = &path == &call.down;
    if (!gradients[i].grad) {
      if (wanted[1]) build.clear(grad_weights[is_down], path.c * chain.c);
      continue;
    }
    void* const of_hidden = build.map_scratch(path.h, path.w, chain.c);
    products.job[is_down] = {gradients[i], path.product, of_hidden, nullptr, path.samples, path.h, path.w, 1, 0, 0, 1};
    (is_down ? hidden.of_down : hidden.of_up) = of_hidden;
    (is_down ? hidden.down_taken : hidden.up_taken) = path.samples.taken;
    if (wanted[1])
      build.outer(outer, is_down, gradients[i], hidden.hidden, nullptr, path.stride, path.samples,
                  grad_weights[is_down]);
  }
  if (hidden.of_up || hidden.of_down) build.start("train_product", train_product_shape, products);
  if (outer.job[0].partials || outer.job[1].partials) build.start("train_outer", train_outer_shape, outer);

  const Norm& last = chain.norms.back();
  const int runs = train_runs(chain.h * chain.w), chunks = train_chunks(chain.c);
  hidden.grad_keep = build.map_of(grad_keep);
  hidden.hidden_weight = call.prepared.shares.hidden, hidden.x_weight = call.prepared.shares.x;
  hidden.mean = last.mean(), hidden.invstd = last.invstd();
  hidden.grad_hidden = build.map_scratch(chain.h, chain.w, chain.c), hidden.grad_x = grads.x;
  hidden.partials = build.some(int64_t(n) * runs * 2 * chain.c),
  hidden.dots = build.some(int64_t(n) * runs * chunks * 2);
  hidden.samples = chain.samples, hidden.n = n, hidden.closed_dots = bridge > 0;
  build.start("train_hidden", train_hidden_shape, hidden);

  ChainEnd end = {};
  end.of = chain.normed(chain.stages - 1), end.grad = hidden.grad_hidden, end.weight = factor ? call.factor : nullptr;
  end.sums = {hidden.partials, runs, 2, 0};
  end.added = hidden.grad_hidden;
  end.more = hidden.grad_keep, end.more_weight = call.prepared.shares.x;
  backward_stages(build, chain, end, grads);

  if (n > 0) {
    TrainAlphasParams of_alphas = {};
    const auto parts = [](const Path& path) { return train_runs(path.pixels()) * train_chunks(path.c); };
    of_alphas.up_dots = sums.job[0].dots, of_alphas.down_dots = sums.job[1].dots, of_alphas.dots = hidden.dots;
    of_alphas.up_taken = call.up.samples.taken, of_alphas.down_taken = call.down.samples.taken;
    of_alphas.x_weight = call.prepared.shares.x, of_alphas.grad_alphas = grad_alphas, of_alphas.n = n;
    of_alphas.up_parts = parts(call.up), of_alphas.down_parts = parts(call.down), of_alphas.parts = runs * chunks;
    of_alphas.bridge = float(bridge);
    build.start("train_alphas", train_alphas_shape, of_alphas);
  }
  return build.take();
}

}  // namespace dynroute::cuda
