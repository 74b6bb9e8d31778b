// A chain of training stages, forward and backward: [depthwise ->] pointwise -> BatchNorm, ReLU between them.
// sepconv_train and transform_train are chains; node_train begins with one.
#pragma once
#include <tuple>

#include "train_chain.h"

namespace dynroute {

// What a stage computes with. Panels and taps are packed for the call; which of them, forward and backward differ in.
template <class T>
struct StageWeights {
  const T *taps, *flipped;  // null: no depthwise
  Pointwise<T> product, transposed;
  Norm<T> norm;
  int c_in;
};

// The lists of tensors that a chain's weights come in.
struct StageTensors {
  const std::vector<Tensor>&depthwise, &pointwise, &gamma, &beta;
  const std::vector<Tensor>*running_mean, *running_var;  // forward only
};

// A chain on its input: shapes, samples, weights.
template <class T>
class Chain {
 public:
  Tensor x;
  int stages, n, h_in, w_in, c_in, h, w, c, stride;
  bool relu_input;  // ReLU(x) is what the first stage reads
  std::vector<int> samples;
  int64_t pixels;  // of a map at the output's size, over all samples
  std::vector<StageWeights<T>> weights;
  std::vector<T> scale, shift;  // [stages][c]

  // open(i): whether sample i takes part
  template <class Open>
  Chain(const Tensor& x_in, const std::vector<Tensor>& pointwise, const Open& open, int stride_in, bool relu_in)
      : x(nhwc(x_in)), stages(int(pointwise.size())), stride(stride_in), relu_input(relu_in) {
    n = int(x.size(0)), c_in = int(x.size(1)), h_in = int(x.size(2)), w_in = int(x.size(3));
    h = strided(h_in, stride), w = strided(w_in, stride), c = int(pointwise[0].size(0));
    for (int i = 0; i < n; ++i)
      if (open(i)) samples.push_back(i);
    pixels = int64_t(samples.size()) * h * w;
    scale.resize(size_t(stages) * c), shift.resize(size_t(stages) * c);
  }
  int open_samples() const { return int(samples.size()); }
  int64_t raw_size() const { return int64_t(n) * h * w * c; }
  int64_t sample_size() const { return int64_t(h) * w * c; }
  int rows() const { return band_rows(open_samples(), h); }
  int tasks() const { return tasks_of(open_samples(), h, rows()); }

  // Memory for packed weights: of a product, transposed or not, and of all.
  static int64_t product_size(const Tensor& weight) {
    return std::max(PackedWeights<T>::pointwise_size(weight.size(0), weight.size(1)),
                    PackedWeights<T>::pointwise_size(weight.size(1), weight.size(0)));
  }
  static int64_t packed_size(const StageTensors& from, bool backward) {
    int64_t size = 0;
    for (const Tensor& weight : from.pointwise)
      size += (backward ? 2 : 1) * PackedWeights<T>::depthwise_size(weight.size(1)) + product_size(weight);
    return size;
  }
  // A tensor's values, kept alive with the chain.
  const T* values(const Tensor& tensor) {
    Tensor kept = torch::stable::contiguous(tensor);
    alive_.push_back(kept);
    return kept.template const_data_ptr<T>();
  }
  void pack(const StageTensors& from, bool backward, PackedWeights<T>& packed) {
    ones_.assign(size_t(c), T(1)), zeros_.assign(size_t(c), T(0));
    for (int k = 0; k < stages; ++k) {
      const size_t at = size_t(k);
      StageWeights<T> made = {};
      made.c_in = int(from.pointwise[at].size(1));
      if (!from.depthwise.empty()) {
        const T* taps = values(from.depthwise[at]);
        made.taps = packed.depthwise(taps, made.c_in);
        if (backward) made.flipped = packed.flipped(taps, made.c_in);
      }
      const T* product = values(from.pointwise[at]);
      if (backward) made.transposed = packed.transposed(product, made.c_in, c);
      else made.product = packed.pointwise(product, ones_.data(), zeros_.data(), c, made.c_in);
      made.norm = {values(from.gamma[at]), values(from.beta[at]), nullptr, nullptr, c};
      if (from.running_mean) made.norm.mean = values((*from.running_mean)[at]);
      if (from.running_var) made.norm.variance = values((*from.running_var)[at]);
      weights.push_back(made);
    }
  }
  TrainStage<T> stage(int k, const Raw<T>& raw) const {
    TrainStage<T> made = {};
    if (k == 0) made.input = {{x.template const_data_ptr<T>(), nullptr}, nullptr, nullptr, relu_input};
    else made.input = {raw.from((k - 1) * raw_size()), scale.data() + (k - 1) * c, shift.data() + (k - 1) * c, true};
    made.depthwise = weights[size_t(k)].taps;
    made.c_in = k == 0 ? c_in : c, made.c_out = c, made.stride = k == 0 ? stride : 1;
    made.h_in = k == 0 ? h_in : h, made.w_in = k == 0 ? w_in : w, made.h_out = h, made.w_out = w;
    made.samples = samples.data(), made.n = open_samples();
    return made;
  }
  // Scale and shift from a forward's statistics [stages][kStatistics][c].
  void take_statistics(const T* stats) {
    for (int k = 0; k < stages; ++k, stats += kStatistics * c)
      affine_of(weights[size_t(k)].norm.gamma, weights[size_t(k)].norm.beta, stats, stats + kInvstd * c, c,
                scale.data() + k * c, shift.data() + k * c);
  }

 private:
  std::vector<Tensor> alive_;
  std::vector<T> ones_, zeros_;
};

// The stages' raw outputs [stages][n, h, w, c] and statistics [stages][kStatistics][c].
template <class T>
void forward_stages(Chain<T>& chain, bool frozen, double eps, const RawOut<T>& raw, T* stats,
                    const CallCounters& counters, Runner& runner, TaskList& list, const Ranks& ranks = {}) {
  const int c = chain.c, rows = chain.rows(), tasks = chain.tasks();
  std::vector<T> sums(size_t(std::max(tasks, 1)) * 3 * size_t(c));
  std::vector<double> mean(static_cast<size_t>(c)), variance(static_cast<size_t>(c));
  for (int k = 0; k < chain.stages; ++k, stats += kStatistics * c) {
    TrainForwardJob<T> job = {};
    job.stage = chain.stage(k, raw);
    job.pointwise = chain.weights[size_t(k)].product;
    job.y = raw.from(k * chain.raw_size());
    job.sums = sums.data(), job.band_rows = rows, job.macs = counters.macs;
    list.add(kernels_without_tiles<T>().train.forward, job, tasks);
    runner.run(list);
    merge_statistics(sums.data(), tasks, chain.h, chain.w, rows, c, mean.data(), variance.data());
    Moments found = {chain.pixels, c, mean.data(), variance.data()};
    ranks.merge({&found});
    finish_norm(chain.weights[size_t(k)].norm, mean.data(), variance.data(), found.pixels, frozen, eps, stats,
                chain.scale.data() + k * c, chain.shift.data() + k * c);
  }
}

// Where the gradients of a chain's weights go, per stage; null where they are not wanted.
template <class T>
struct StageGradients {
  std::vector<T*> depthwise, pointwise, gamma, beta;
  StageGradients() = default;
  StageGradients(const StageTensors& of, bool want_depthwise, bool want_pointwise, FlatGradients<T>& flat) {
    for (const Tensor& w : of.depthwise) depthwise.push_back(want_depthwise ? flat.take(9 * w.size(0)) : nullptr);
    for (const Tensor& w : of.pointwise)
      pointwise.push_back(want_pointwise ? flat.take(w.size(0) * w.size(1)) : nullptr);
    for (const Tensor& w : of.gamma) gamma.push_back(flat.take(w.size(0)));
    for (const Tensor& w : of.beta) beta.push_back(flat.take(w.size(0)));
    depthwise.resize(pointwise.size());
  }
  static int64_t size(const StageTensors& of, bool want_depthwise, bool want_pointwise) {
    int64_t size = 0;
    for (const Tensor& w : of.depthwise) size += want_depthwise ? 9 * w.size(0) : 0;
    for (const Tensor& w : of.pointwise) size += want_pointwise ? w.size(0) * w.size(1) : 0;
    for (const Tensor& w : of.gamma) size += 2 * w.size(0);
    return size;
  }
};

// What a chain's backward begins with: the gradient of its last stage's output, and sums for its BatchNorm.
template <class T>
struct LastStage {
  TrainOutput<T> output;
  const T* grad;    // [n, h, w, c]
  const T* weight;  // of grad, by sample, or null
  const T* sums;    // [tasks][2][c]
  int tasks;
};

// What is added to the input's gradient besides.
template <class T>
struct AddedGradient {
  const T* grad = nullptr;  // [n, h, w, c], behind `passed`'s ReLU, if it has one
  TrainOutput<T> passed = {};
  const T* more = nullptr;  // times more_weight, by sample
  const T* more_weight = nullptr;
};

// Gradients of x (null: not wanted) and of all weights.
template <class T>
void backward_stages(const Chain<T>& chain, const Raw<T>& raw, const T* stats, bool frozen, LastStage<T> last,
                     const AddedGradient<T>& added, T* grad_x, const StageGradients<T>& grads,
                     const CallCounters& counters, Runner& runner, TaskList& list, const Ranks& ranks = {}) {
  const int c = chain.c, stages = chain.stages, samples = chain.open_samples();
  const TrainKernels<T>& kernels = kernels_without_tiles<T>().train;
  const ScalarType type = chain.x.scalar_type();
  const int rows = chain.rows(), tasks = chain.tasks();
  const int in_rows = band_rows(samples, chain.h_in), in_tasks = tasks_of(samples, chain.h_in, in_rows);
  const bool has_taps = chain.weights[0].taps != nullptr;
  // what a pointwise product of every pixel gives is the input's gradient itself
  const bool direct = !has_taps && chain.stride == 1 && !chain.relu_input && !added.grad && !added.more && grad_x;
  std::vector<T> own_sums(size_t(std::max({tasks, in_tasks, 1})) * 2 * size_t(c));
  std::vector<double> first(static_cast<size_t>(c)), second(static_cast<size_t>(c));
  const int64_t map = int64_t(chain.n) * chain.h * chain.w;
  Tensor between = new_tensor({stages > 1 ? map * c : 0}, type);
  Tensor of_depthwise = new_tensor({direct ? 0 : map * std::max(c, chain.c_in)}, type);
  std::vector<ProductGradient<T>> products;
  std::vector<Tensor> kept;  // what tasks that are yet to run read
  products.reserve(size_t(stages)), kept.reserve(size_t(stages));
  for (int k = stages - 1; k >= 0; --k) {
    const size_t at = size_t(k);
    const StageWeights<T>& weights = chain.weights[at];
    const int from = weights.c_in;
    T *want_depthwise = grads.depthwise[at], *want_pointwise = grads.pointwise[at];
    add_up(last.sums, last.tasks, c, first.data(), second.data());
    NormSums all(chain.pixels, c, first.data(), second.data());
    ranks.add({&all});
    const NormBackward<T> norm(weights.norm, last.output.invstd, first.data(), second.data(), chain.pixels, frozen,
                               grads.gamma[at], grads.beta[at], &all);
    const bool on = grad_x || k > 0;  // whether anything before this stage wants a gradient
    const int parts = product_parts(int64_t(samples) * chain.h, int64_t(from) * c);
    ProductGradient<T>& of_product =
        products.emplace_back(want_pointwise, c, from, parts, int64_t(chain.h) * chain.w, chain.n, type);
    TrainProductJob<T> product = {};
    product.stage = chain.stage(k, raw);
    product.output = last.output, product.grad = last.grad, product.weight = last.weight;
    product.gain = norm.gain.data(), product.slope = norm.slope.data(), product.mean_grad = norm.mean_grad.data();
    if (on || want_depthwise) product.transposed = weights.transposed;
    product.grad_d = direct ? grad_x : of_depthwise.template mutable_data_ptr<T>();
    product.grad_weight = of_product.sums(), product.kept_gy = of_product.a(), product.kept_d = of_product.b();
    product.parts = parts, product.macs = counters.macs;
    if (samples > 0) list.add(kernels.product, product, parts);
    runner.run(list);

    const int stage_rows = k == 0 ? in_rows : rows, stage_tasks = k == 0 ? in_tasks : tasks;
    Tensor& partial_depthwise =
        kept.emplace_back(new_tensor({want_depthwise ? int64_t(std::max(stage_tasks, 1)) * 9 * from : 0}, type));
    TrainDepthwiseJob<T> down = {};
    down.stage = product.stage;
    down.grad_d = product.grad_d, down.flipped = weights.flipped;
    if (k == 0) {
      down.added = added.grad, down.passed = added.passed;
      down.more = added.more, down.more_weight = added.more_weight;
    }
    down.grad_x = k == 0 ? grad_x : between.template mutable_data_ptr<T>();
    if (k > 0) {
      const T* before = stats + int64_t(k - 1) * kStatistics * c;
      down.mean = before, down.invstd = before + kInvstd * c, down.sums = own_sums.data();
      last.output = {raw.from((k - 1) * chain.raw_size()), down.mean, down.invstd, false, nullptr, nullptr, nullptr};
    }
    if (want_depthwise) down.grad_weight = partial_depthwise.template mutable_data_ptr<T>();
    down.band_rows = stage_rows, down.macs = counters.macs;
    if (!direct && (down.grad_x || down.grad_weight)) list.add(kernels.depthwise, down, stage_tasks);
    // what the product left for its weights' gradient is other work for the threads meanwhile
    of_product.finish(list, chain.samples, chain.h * chain.w);
    runner.run(list);
    if (want_depthwise) {
      if (samples == 0) std::memset(want_depthwise, 0, 9 * size_t(from) * sizeof(T));
      else reduce_taps(list, static_cast<const T*>(down.grad_weight), stage_tasks, from, want_depthwise);  // runs later
    }
    last.grad = down.grad_x, last.weight = nullptr, last.sums = own_sums.data(), last.tasks = stage_tasks;
  }
  runner.run(list);
}

// How a chain runs as an operator of its own.
struct ChainOptions {
  int stride;
  bool relu_input, residual, final_relu;
  bool frozen;     // BatchNorm normalises with the running statistics
  ScalarType raw;  // of raw outputs
  double eps;
  Ranks ranks = {};  // whose BatchNorms are one
};

using Forward = std::tuple<Tensor, Tensor, Tensor>;

// Output, raw outputs [stages * n, c, h, w], statistics [stages, 3, c].
template <class T>
Forward run_forward(const Tensor& x_in, const StageTensors& tensors, const Mask& open, const ChainOptions& options) {
  const auto takes_part = [&](int i) { return open[i]; };
  Chain<T> chain(x_in, tensors.pointwise, takes_part, options.stride, options.relu_input);
  const TorchParallel parallel;
  CallCounters counters;
  const int c = chain.c, stages = chain.stages;
  const ScalarType type = x_in.scalar_type();
  PackedWeights<T> packed(Chain<T>::packed_size(tensors, false), 0);
  chain.pack(tensors, false, packed);
  packed.run(parallel);

  Tensor out = new_tensor({chain.n, c, chain.h, chain.w}, type, true);
  Tensor raw = new_tensor({int64_t(stages) * chain.n, c, chain.h, chain.w}, options.raw, true);
  Tensor stats = new_tensor({stages, kStatistics, c}, type);
  const RawOut<T> raw_data = raw_out<T>(raw);
  T* out_data = out.template mutable_data_ptr<T>();
  Runner runner(parallel);
  TaskList list;
  forward_stages(chain, options.frozen, options.eps, raw_data, stats.template mutable_data_ptr<T>(), counters, runner,
                 list, options.ranks);
  TrainApplyJob<T> job = {};
  const int last = stages - 1;
  job.y = raw_data.from(last * chain.raw_size());
  job.scale = chain.scale.data() + last * c, job.shift = chain.shift.data() + last * c;
  job.relu = options.final_relu;
  job.residual = options.residual ? chain.x.template const_data_ptr<T>() : nullptr;
  job.out = out_data, job.samples = chain.samples.data(), job.n = chain.open_samples();
  job.h = chain.h, job.w = chain.w, job.c = c, job.band_rows = chain.rows();
  list.add(kernels_without_tiles<T>().train.apply, job, chain.tasks());
  for (int i = 0; i < chain.n; ++i) {
    if (open[i]) continue;
    const auto clear = [&](auto* map) {
      auto* to = map + i * chain.sample_size();
      const size_t bytes = size_t(chain.sample_size()) * sizeof(*map);
      list.add([=](int) { std::memset(static_cast<void*>(to), 0, bytes); }, 1);
    };
    clear(out_data);
    for (int k = 0; k < stages; ++k) {
      const RawOut<T> map = raw_data.from(k * chain.raw_size());
      if (map.narrow) clear(map.narrow);
      else clear(map.wide);
    }
  }
  runner.run(list);
  return {out, raw, stats};
}

// Gradients of x, and of all weights in one tensor (FlatGradients); `wanted`: x, depthwise, pointwise.
template <class T>
std::tuple<Tensor, Tensor> run_backward(const Tensor& grad_in, const Tensor& x_in, const StageTensors& tensors,
                                        const Tensor& raw, const Tensor& stats, const Mask& open,
                                        const ChainOptions& options, const std::vector<bool>& wanted) {
  const auto takes_part = [&](int i) { return open[i]; };
  Chain<T> chain(x_in, tensors.pointwise, takes_part, options.stride, options.relu_input);
  const TorchParallel parallel;
  CallCounters counters;
  const int c = chain.c, stages = chain.stages;
  const ScalarType type = x_in.scalar_type();
  const Tensor grad = nhwc(grad_in);
  PackedWeights<T> packed(Chain<T>::packed_size(tensors, true), 0);
  chain.pack(tensors, true, packed);
  packed.run(parallel);
  const Raw<T> raw_data = raw_of<T>(raw);
  const T* stats_data = stats.template const_data_ptr<T>();
  chain.take_statistics(stats_data);

  Tensor grad_x = new_tensor({wanted[0] ? chain.n : 0, chain.c_in, chain.h_in, chain.w_in}, type, true);
  T* grad_x_data = wanted[0] ? grad_x.template mutable_data_ptr<T>() : nullptr;
  FlatGradients<T> flat(StageGradients<T>::size(tensors, wanted[1], wanted[2]), type);
  const StageGradients<T> grads(tensors, wanted[1], wanted[2], flat);
  Runner runner(parallel);
  TaskList list;
  const int last = stages - 1;
  const T* of_last = stats_data + int64_t(last) * kStatistics * c;
  const TrainOutput<T> output = {raw_data.from(last * chain.raw_size()),
                                 of_last,
                                 of_last + kInvstd * c,
                                 options.final_relu,
                                 chain.scale.data() + last * c,
                                 chain.shift.data() + last * c,
                                 options.residual ? chain.x.template const_data_ptr<T>() : nullptr};
  const T* grad_data = grad.template const_data_ptr<T>();
  std::vector<T> sums(size_t(std::max(chain.tasks(), 1)) * 2 * size_t(c));
  TrainSumsJob<T> job = {};
  job.output = output, job.grad = grad_data, job.sums = sums.data();
  job.samples = chain.samples.data(), job.n = chain.open_samples(), job.h = chain.h, job.w = chain.w, job.c = c;
  job.band_rows = chain.rows();
  list.add(kernels_without_tiles<T>().train.sums, job, chain.tasks());
  runner.run(list);
  AddedGradient<T> added;
  if (options.residual) added.grad = grad_data, added.passed = output;
  backward_stages(chain, raw_data, stats_data, options.frozen, {output, grad_data, nullptr, sums.data(), chain.tasks()},
                  added, grad_x_data, grads, counters, runner, list, options.ranks);
  const int64_t size = int64_t(chain.h_in) * chain.w_in * chain.c_in;
  for (int i = 0; grad_x_data && i < chain.n; ++i)
    if (!open[i]) std::memset(grad_x_data + i * size, 0, size_t(size) * sizeof(T));
  return {grad_x, flat.tensor};
}

}  // namespace dynroute
