// node_train and its backward: a node's cell, and what its paths make of it. Check, and run.
#include <torch/csrc/stable/library.h>

#include "node_call.h"

namespace dynroute {
namespace {

using Forward7 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Forward7 run_node(const Tensor& x_in, const Tensor& alphas, const NodeTensors& t,
                  const std::optional<Tensor>& factor_in, const NodeShape& shape) {
  const Shares<T> shares(alphas, shape);
  Chain<T> chain(x_in, t.pointwise, [&](int i) { return shares.open[size_t(i)]; }, 1, false);
  std::optional<Values<T>> factor;
  if (factor_in) factor.emplace(*factor_in);
  const TorchParallel parallel;
  CallCounters counters;
  const TrainKernels<T>& kernels = kernels_without_tiles<T>().train;
  const ScalarType type = x_in.scalar_type();
  const int c = shape.c;

  const StageTensors tensors = {t.depthwise, t.pointwise, t.gamma, t.beta, t.running_mean, t.running_var};
  PackedWeights<T> packed(packed_node_size<T>(t, tensors, false), 0);
  chain.pack(tensors, false, packed);
  const std::vector<T> ones(size_t(std::max({shape.up_c, shape.down_c, 1})), T(1)), zeros(ones.size(), T(0));
  TrainPathsJob<T> job = {};
  if (t.up) job.up.pointwise = packed.pointwise(chain.values(*t.up), ones.data(), zeros.data(), shape.up_c, c);
  if (t.down) job.down.pointwise = packed.pointwise(chain.values(*t.down), ones.data(), zeros.data(), shape.down_c, c);
  packed.run(parallel);

  const auto up_map = [&](ScalarType of) {
    return t.up ? new_tensor({shape.n, shape.up_c, shape.h, shape.w}, of, true) : new_tensor({0}, of);
  };
  const auto down_map = [&](ScalarType of) {
    return t.down ? new_tensor({shape.n, shape.down_c, shape.down_h(), shape.down_w()}, of, true) : new_tensor({0}, of);
  };
  const ScalarType kept = shape.raw;
  Tensor keep = new_tensor({shape.n, c, shape.h, shape.w}, type, true);
  Tensor up = up_map(type), up_raw = up_map(kept), down = down_map(type), down_raw = down_map(kept);
  Tensor raw = new_tensor({int64_t(shape.stages) * shape.n, c, shape.h, shape.w}, kept, true);
  Tensor stats = new_tensor({t.statistics()}, type);
  const RawOut<T> raw_data = raw_out<T>(raw);
  T* stats_data = stats.template mutable_data_ptr<T>();
  Runner runner(parallel);
  TaskList list;
  forward_stages(chain, shape.frozen, shape.eps, raw_data, stats_data, counters, runner, list, shape.ranks);

  const int rows = int(round_up(chain.rows(), 2)), tasks = tasks_of(chain.open_samples(), shape.h, rows);
  std::vector<T> up_sums(size_t(std::max(tasks, 1)) * 3 * size_t(shape.up_c));
  std::vector<T> down_sums(size_t(std::max(tasks, 1)) * 3 * size_t(shape.down_c));
  job.hidden = hidden_of<T>(chain, raw_data, factor ? factor->data() : nullptr);
  job.up.stride = 1, job.up.open = shares.up_open.get(), job.up.sums = up_sums.data();
  job.down.stride = 2, job.down.open = shares.down_open.get(), job.down.sums = down_sums.data();
  if (t.up) job.up.raw = raw_out<T>(up_raw);
  if (t.down) job.down.raw = raw_out<T>(down_raw);
  job.hidden_weight = shares.hidden.data(), job.x_weight = shares.x.data();
  job.keep = keep.template mutable_data_ptr<T>(), job.band_rows = rows, job.macs = counters.macs;
  list.add(kernels.paths, job, tasks);
  const int64_t size = chain.sample_size();
  for (int i = 0; i < shape.n; ++i) {
    if (shares.open[size_t(i)]) continue;
    const T *from = chain.x.template const_data_ptr<T>() + i * size, weight = shares.x[size_t(i)];
    T* to = job.keep + i * size;
    list.add(
        [=](int) {
          for (int64_t at = 0; at < size; ++at) to[at] = weight * from[at];
        },
        1);
  }
  runner.run(list);

  Affine<T> up_affine(shape.up_c), down_affine(shape.down_c);
  std::vector<double> moments(2 * size_t(shape.up_c + shape.down_c));
  const auto find = [&](int path_c, int h, int w, int path_rows, const std::vector<T>& sums, const bool* open,
                        const std::vector<int>& samples, double* to) -> Moments {
    std::vector<bool> used;
    for (int sample : chain.samples) used.push_back(open[sample]);
    merge_statistics(sums.data(), tasks, h, w, path_rows, path_c, to, to + path_c, &used);
    return {int64_t(samples.size()) * h * w, path_c, to, to + path_c};
  };
  Moments of_up = find(shape.up_c, shape.h, shape.w, rows, up_sums, job.up.open, shares.up_samples, moments.data());
  Moments of_down = find(shape.down_c, shape.down_h(), shape.down_w(), rows / 2, down_sums, job.down.open,
                         shares.down_samples, moments.data() + 2 * shape.up_c);
  if (shape.up_c + shape.down_c > 0) shape.ranks.merge({&of_up, &of_down});
  const auto finish = [&](int path_c, int h, int w, const Moments& found, const bool* open,
                          const std::vector<int>& samples, const std::vector<T>& weight, size_t norm_at, T* of_path,
                          Affine<T>& affine, const Raw<T>& y, Tensor& made) {
    if (path_c == 0) return;
    finish_norm(path_norm(chain, t, norm_at, path_c), found.mean, found.variance, found.pixels, shape.frozen, shape.eps,
                of_path, affine.scale.data(), affine.shift.data());
    TrainApplyJob<T> apply = {};
    apply.y = y, apply.scale = affine.scale.data(), apply.shift = affine.shift.data(), apply.relu = true;
    apply.weight = weight.data(), apply.out = made.template mutable_data_ptr<T>();
    apply.samples = samples.data(), apply.n = int(samples.size()), apply.h = h, apply.w = w, apply.c = path_c;
    apply.band_rows = band_rows(apply.n, h);
    list.add(kernels.apply, apply, tasks_of(apply.n, h, apply.band_rows));
    const size_t bytes = size_t(h) * size_t(w) * size_t(path_c) * sizeof(T);
    for (int i = 0; i < shape.n; ++i) {
      T* to = apply.out + i * int64_t(bytes / sizeof(T));
      if (!open[i]) list.add([=](int) { std::memset(to, 0, bytes); }, 1);
    }
  };
  const size_t first_path = size_t(shape.stages);
  finish(shape.up_c, shape.h, shape.w, of_up, job.up.open, shares.up_samples, shares.up, first_path,
         stats_data + t.up_statistics(), up_affine, job.up.raw, up);
  finish(shape.down_c, shape.down_h(), shape.down_w(), of_down, job.down.open, shares.down_samples, shares.down,
         first_path + size_t(shape.up_c > 0), stats_data + t.down_statistics(), down_affine, job.down.raw, down);
  runner.run(list);
  return {keep, up, down, raw, up_raw, down_raw, stats};
}

// A path in backward: its gradient, its BatchNorm's, and the gradient of its weight.
template <class T>
struct PathBackward {
  std::optional<Tensor> grad;
  Affine<T> affine;
  TrainOutput<T> output = {};
  Norm<T> norm = {};
  std::vector<T> sums, dots;
  std::vector<double> first, second;
  std::optional<NormBackward<T>> made;
  std::optional<ProductGradient<T>> product;
  T *grad_weight = nullptr, *grad_gamma = nullptr, *grad_beta = nullptr;
  int c, h, w, rows = 0, tasks = 0;

  PathBackward(int c_in, int h_in, int w_in)
      : affine(c_in), first(size_t(c_in)), second(size_t(c_in)), c(c_in), h(h_in), w(w_in) {}
};

using Backward3 = std::tuple<Tensor, Tensor, Tensor>;

template <class T>
Backward3 run_node_backward(const std::optional<Tensor>& grad_keep_in, const std::optional<Tensor>& grad_up,
                            const std::optional<Tensor>& grad_down, const Tensor& x_in, const Tensor& alphas,
                            const NodeTensors& t, const Tensor& raw, const Tensor& up_raw, const Tensor& down_raw,
                            const Tensor& stats, const std::optional<Tensor>& factor_in, const NodeShape& shape,
                            const std::vector<bool>& wanted) {
  const Shares<T> shares(alphas, shape);
  Chain<T> chain(x_in, t.pointwise, [&](int i) { return shares.open[size_t(i)]; }, 1, false);
  std::optional<Values<T>> factor;
  if (factor_in) factor.emplace(*factor_in);
  const TorchParallel parallel;
  CallCounters counters;
  const TrainKernels<T>& kernels = kernels_without_tiles<T>().train;
  const ScalarType type = x_in.scalar_type();
  const int c = shape.c, samples = chain.open_samples();
  const bool want_x = wanted[0], want_weights = wanted[1];

  const StageTensors tensors = {t.depthwise, t.pointwise, t.gamma, t.beta, nullptr, nullptr};
  PackedWeights<T> packed(packed_node_size<T>(t, tensors, true), 0);
  chain.pack(tensors, true, packed);
  TrainPathsBackwardJob<T> job = {};
  if (t.up) job.up.transposed = packed.transposed(chain.values(*t.up), c, shape.up_c);
  if (t.down) job.down.transposed = packed.transposed(chain.values(*t.down), c, shape.down_c);
  packed.run(parallel);
  const Raw<T> raw_data = raw_of<T>(raw);
  const T* stats_data = stats.template const_data_ptr<T>();
  chain.take_statistics(stats_data);

  // gradients, in the order of the weights' lists: convolutions, then gammas, then betas
  Tensor grad_x = new_tensor({want_x ? shape.n : 0, c, shape.h, shape.w}, type, true);
  T* grad_x_data = want_x ? grad_x.template mutable_data_ptr<T>() : nullptr;
  const int64_t path_weights = int64_t(c) * (shape.up_c + shape.down_c);
  int64_t flat_size = want_weights ? path_weights : 0;
  for (const Tensor& gamma : t.gamma) flat_size += 2 * gamma.size(0);
  if (want_weights)
    for (int k = 0; k < shape.stages; ++k) flat_size += int64_t(c) * (9 + c);
  FlatGradients<T> flat(flat_size, type);
  StageGradients<T> grads;
  PathBackward<T> up(shape.up_c, shape.h, shape.w), down(shape.down_c, shape.down_h(), shape.down_w());
  for (int k = 0; k < shape.stages; ++k) grads.depthwise.push_back(want_weights ? flat.take(9 * int64_t(c)) : nullptr);
  for (int k = 0; k < shape.stages; ++k) grads.pointwise.push_back(want_weights ? flat.take(int64_t(c) * c) : nullptr);
  for (PathBackward<T>* path : {&up, &down})
    if (path->c > 0 && want_weights) path->grad_weight = flat.take(int64_t(path->c) * c);
  for (std::vector<T*>* list : {&grads.gamma, &grads.beta}) {
    for (int k = 0; k < shape.stages; ++k) list->push_back(flat.take(c));
    for (PathBackward<T>* path : {&up, &down})
      if (path->c > 0) (list == &grads.gamma ? path->grad_gamma : path->grad_beta) = flat.take(path->c);
  }

  Runner runner(parallel);
  TaskList list;
  const auto begin = [&](PathBackward<T>& path, const std::optional<Tensor>& grad, const Tensor& path_raw,
                         int64_t stats_at, size_t norm_at, const std::vector<int>& of, const std::vector<T>& weight) {
    if (path.c == 0) return;
    path.norm = path_norm(chain, t, norm_at, path.c);
    const T* made = stats_data + stats_at;
    affine_of(path.norm.gamma, path.norm.beta, made, made + kInvstd * path.c, path.c, path.affine.scale.data(),
              path.affine.shift.data());
    path.output = {raw_of<T>(path_raw),      made,   made + kInvstd * path.c, true, path.affine.scale.data(),
                   path.affine.shift.data(), nullptr};
    if (!grad) return;
    path.grad = nhwc(*grad);
    path.rows = band_rows(int(of.size()), path.h), path.tasks = tasks_of(int(of.size()), path.h, path.rows);
    path.sums.resize(size_t(path.tasks) * 2 * size_t(path.c)), path.dots.resize(size_t(path.tasks));
    TrainSumsJob<T> sums = {};
    sums.output = path.output, sums.grad = path.grad->template const_data_ptr<T>(), sums.weight = weight.data();
    sums.sums = path.sums.data(), sums.dots = path.dots.data(), sums.samples = of.data(), sums.n = int(of.size());
    sums.h = path.h, sums.w = path.w, sums.c = path.c, sums.band_rows = path.rows;
    list.add(kernels.sums, sums, path.tasks);
  };
  const size_t first_path = size_t(shape.stages);
  begin(up, grad_up, up_raw, t.up_statistics(), first_path, shares.up_samples, shares.up);
  begin(down, grad_down, down_raw, t.down_statistics(), first_path + size_t(shape.up_c > 0), shares.down_samples,
        shares.down);
  runner.run(list);

  // a task leaves its own sums of the paths' weights' gradients: few where they are large
  const int parts = product_parts(int64_t(samples) * shape.h, std::max<int64_t>(path_weights, 1));
  const int64_t bands = std::max<int64_t>(1, parts / std::max(samples, 1));
  const int rows = int(round_up(ceil_div(shape.h, bands), 2)), tasks = tasks_of(samples, shape.h, rows);
  const auto summed = [](PathBackward<T>& path, const std::vector<int>& of) {
    add_up(path.sums.data(), path.tasks, path.c, path.first.data(), path.second.data());
    return NormSums(int64_t(of.size()) * path.h * path.w, path.c, path.first.data(), path.second.data());
  };
  NormSums of_up = summed(up, shares.up_samples), of_down = summed(down, shares.down_samples);
  if (up.c + down.c > 0) shape.ranks.add({&of_up, &of_down});
  const auto prepare = [&](PathBackward<T>& path, TrainPathBackward<T>& to, int stride, const bool* open,
                           const std::vector<T>& weight, const NormSums& all) {
    if (path.c == 0) return;
    path.product.emplace(path.grad ? path.grad_weight : nullptr, path.c, c, tasks, int64_t(path.h) * path.w, shape.n,
                         type);
    path.made.emplace(path.norm, path.output.invstd, path.first.data(), path.second.data(), all.pixels, shape.frozen,
                      path.grad_gamma, path.grad_beta, &all);
    to.output = path.output, to.weight = weight.data(), to.open = open, to.c = path.c, to.stride = stride;
    to.grad = path.grad ? path.grad->template const_data_ptr<T>() : nullptr;
    to.gain = path.made->gain.data(), to.slope = path.made->slope.data(), to.mean_grad = path.made->mean_grad.data();
    to.grad_weight = path.product->sums(), to.kept_gy = path.product->a(), to.kept_h = path.product->b();
  };
  prepare(up, job.up, 1, shares.up_open.get(), shares.up, of_up);
  prepare(down, job.down, 2, shares.down_open.get(), shares.down, of_down);
  std::optional<Tensor> grad_keep;
  if (grad_keep_in) grad_keep = nhwc(*grad_keep_in);
  Tensor grad_hidden = new_tensor({shape.n, c, shape.h, shape.w}, type, true);
  std::vector<T> sums(size_t(std::max(tasks, 1)) * 2 * size_t(c)), dots(size_t(tasks) * 2);
  const T* of_last = stats_data + int64_t(shape.stages - 1) * kStatistics * c;
  job.hidden = hidden_of<T>(chain, raw_data, factor ? factor->data() : nullptr);
  job.grad_keep = grad_keep ? grad_keep->template const_data_ptr<T>() : nullptr;
  job.hidden_weight = shares.hidden.data(), job.mean = of_last, job.invstd = of_last + kInvstd * c;
  job.grad_hidden = grad_hidden.template mutable_data_ptr<T>();
  job.sums = sums.data(), job.dots = dots.data(), job.band_rows = rows, job.macs = counters.macs;
  list.add(kernels.paths_backward, job, tasks);
  runner.run(list);
  for (const PathBackward<T>* path : {&up, &down}) {
    if (path->c == 0) continue;
    path->product->finish(list, path == &up ? shares.up_samples : shares.down_samples, path->h * path->w);
    if (path->grad_weight && !path->grad) std::memset(path->grad_weight, 0, size_t(path->c) * c * sizeof(T));
  }

  AddedGradient<T> added;
  added.grad = job.grad_hidden;
  if (shares.passes && job.grad_keep) added.more = job.grad_keep, added.more_weight = shares.x.data();
  const TrainOutput<T> output = {job.hidden.y, job.mean, job.invstd, false, nullptr, nullptr, nullptr};
  backward_stages(chain, raw_data, stats_data, shape.frozen,
                  {output, job.grad_hidden, job.hidden.factor, sums.data(), tasks}, added, grad_x_data, grads, counters,
                  runner, list, shape.ranks);

  // alphas: sums over a sample's tasks, in order
  Tensor grad_alphas = new_tensor({shape.n, kPaths}, type);
  T* of_alphas = grad_alphas.template mutable_data_ptr<T>();
  std::vector<double> total(size_t(shape.n) * 4, 0.0);  // up, keep, down, and what passes X
  const auto gather = [&](const std::vector<int>& of, const std::vector<T>& from, int count, int each, int offset,
                          int to) {
    for (int task = 0; task < count; ++task)
      total[size_t(of[size_t(task / (count / int(of.size())))]) * 4 + size_t(to)] +=
          double(from[size_t(task * each + offset)]);
  };
  if (!shares.up_samples.empty() && up.grad) gather(shares.up_samples, up.dots, up.tasks, 1, 0, kUp);
  if (!shares.down_samples.empty() && down.grad) gather(shares.down_samples, down.dots, down.tasks, 1, 0, kDown);
  if (samples > 0) gather(chain.samples, dots, tasks, 2, 0, kKeep), gather(chain.samples, dots, tasks, 2, 1, 3);
  const int64_t size = chain.sample_size();
  for (int i = 0; i < shape.n; ++i) {
    const size_t at = size_t(i);
    if (!shares.open[at]) {
      const T* passed = job.grad_keep ? job.grad_keep + i * size : nullptr;
      const T* x = chain.x.template const_data_ptr<T>() + i * size;
      for (int64_t j = 0; j < size; ++j) {
        if (want_x) grad_x_data[i * size + j] = passed ? shares.x[at] * passed[j] : T(0);
        if (passed && shape.bridge > 0) total[at * 4 + 3] += double(passed[j]) * double(x[j]);
      }
    }
    if (shape.bridge == 0 && shares.x[at] != 0) total[at * 4 + kKeep] = 0;  // a closed sample's keep is X
    const double passed = shape.bridge > 0 && shares.x[at] > 0 ? total[at * 4 + 3] / shape.bridge : 0;
    for (int path = 0; path < kPaths; ++path) of_alphas[i * kPaths + path] = T(total[at * 4 + size_t(path)] - passed);
  }
  return {grad_x, grad_alphas, flat.tensor};
}

Forward7 forward_op(const Tensor& x, const Tensor& alphas, std::vector<Tensor> depthwise, std::vector<Tensor> pointwise,
                    std::optional<Tensor> up, std::optional<Tensor> down, std::vector<Tensor> gamma,
                    std::vector<Tensor> beta, std::vector<Tensor> running_mean, std::vector<Tensor> running_var,
                    std::optional<Tensor> factor, double bridge, bool skip, bool frozen, std::string group, double eps,
                    bool narrow) {
  const NodeTensors t = {depthwise, pointwise, up, down, gamma, beta, &running_mean, &running_var};
  const std::string op = "node_train";
  const TrainTypes types = train_types_on_cpu(op, x, narrow);
  check_node_train(op, x, alphas, t, factor, bridge, types);
  const NodeShape shape = node_shape(op, x, t, types, bridge, skip, frozen, group, eps);
  const auto run = [&](auto type) { return run_node<decltype(type)>(x, alphas, t, factor, shape); };
  return types.map == ScalarType::Double ? run(double{}) : run(float{});
}

Backward3 backward_op(std::optional<Tensor> grad_keep, std::optional<Tensor> grad_up, std::optional<Tensor> grad_down,
                      const Tensor& x, const Tensor& alphas, std::vector<Tensor> depthwise,
                      std::vector<Tensor> pointwise, std::optional<Tensor> up, std::optional<Tensor> down,
                      std::vector<Tensor> gamma, std::vector<Tensor> beta, const Tensor& raw, const Tensor& up_raw,
                      const Tensor& down_raw, const Tensor& stats, std::optional<Tensor> factor, double bridge,
                      bool skip, bool frozen, std::string group, bool narrow, std::vector<bool> wanted) {
  const std::string op = "node_train_backward";
  const NodeTensors t = {depthwise, pointwise, up, down, gamma, beta, nullptr, nullptr};
  const TrainTypes types = train_types_on_cpu(op, x, narrow);
  check_node_train(op, x, alphas, t, factor, bridge, types);
  check_wanted(op, wanted, 2);
  check_node_train_backward(op, x, t, grad_keep, grad_up, grad_down, raw, up_raw, down_raw, stats, types);
  const NodeShape shape = node_shape(op, x, t, types, bridge, skip, frozen, group, 0);
  const Tensor raw_maps = nhwc(raw), up_maps = up ? nhwc(up_raw) : up_raw, down_maps = down ? nhwc(down_raw) : down_raw;
  const Tensor statistics = torch::stable::contiguous(stats);
  const auto run = [&](auto value) {
    return run_node_backward<decltype(value)>(grad_keep, grad_up, grad_down, x, alphas, t, raw_maps, up_maps, down_maps,
                                              statistics, factor, shape, wanted);
  };
  return types.map == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  m.impl("node_train", TORCH_BOX(&dynroute::forward_op));
  m.impl("node_train_backward", TORCH_BOX(&dynroute::backward_op));
}
