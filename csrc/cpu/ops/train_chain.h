// A chain of training stages, forward and backward: packed weights, launches, and what BatchNorm makes of the kernels'
// sums. sepconv_train and transform_train are chains with and without depthwise.
#pragma once
#include <cmath>
#include <tuple>

#include "bind.h"
#include "contract/geometry.h"
#include "packed_weights.h"

namespace dynroute {

constexpr int kMean = 0, kInvstd = 1, kVariance = 2, kStatistics = 3;
// Tasks of a call, at least where the map has so many rows: a function of the shape, so that sums have one order.
constexpr int64_t kTasks = 32;
// Parts that the weights' gradient is summed in: each is as large as the weights, so wide ones have few.
inline int product_parts(int64_t rows, int64_t weights) {
  constexpr int64_t kFewest = 4, kMost = 16, kFloats = 1 << 18;
  return int(std::max<int64_t>(1, std::min(rows, std::clamp(kFloats / weights, kFewest, kMost))));
}
inline int band_rows(int n, int h) {
  const int64_t bands = std::max<int64_t>(1, std::min<int64_t>(h, ceil_div(kTasks, std::max(n, 1))));
  return int(ceil_div(h, bands));
}
inline int tasks_of(int n, int h, int rows) { return n * int(ceil_div(h, rows)); }

// How a chain of stages runs.
struct ChainOptions {
  int stride;       // of the first stage
  bool relu_input;  // ReLU(x) is what the first stage reads
  bool residual, final_relu;
  bool frozen;  // BatchNorm normalises with the running statistics
  double eps;
};

// What forward and backward share: shapes, packed weights, samples.
template <class T>
struct Chain {
  Tensor x;
  int stages, n, h_in, w_in, c_in, h, w, c, stride;
  std::vector<int> samples;
  int64_t pixels;  // of a map at the output's size, over all samples
  std::vector<Values<T>> alive;

  bool relu_input;

  Chain(const Tensor& x_in, const std::vector<Tensor>& pointwise, const Mask& open, const ChainOptions& options)
      : x(nhwc(x_in)), stages(int(pointwise.size())), stride(options.stride), relu_input(options.relu_input) {
    n = int(x.size(0)), c_in = int(x.size(1)), h_in = int(x.size(2)), w_in = int(x.size(3));
    h = strided(h_in, stride), w = strided(w_in, stride), c = int(pointwise[0].size(0));
    for (int i = 0; i < n; ++i)
      if (open[i]) samples.push_back(i);
    pixels = int64_t(samples.size()) * h * w;
  }
  const T* values(const Tensor& tensor) { return alive.emplace_back(tensor).data(); }
  int64_t raw_size() const { return int64_t(n) * h * w * c; }
  TrainStage<T> stage(int k, const T* depthwise, const T* raw, const T* scale, const T* shift) const {
    TrainStage<T> made = {};
    if (k == 0) made.input = {x.template const_data_ptr<T>(), nullptr, nullptr, relu_input};
    else made.input = {raw + (k - 1) * raw_size(), scale + (k - 1) * c, shift + (k - 1) * c, true};
    made.depthwise = depthwise;
    made.c_in = k == 0 ? c_in : c, made.c_out = c, made.stride = k == 0 ? stride : 1;
    made.h_in = k == 0 ? h_in : h, made.w_in = k == 0 ? w_in : w, made.h_out = h, made.w_out = w;
    made.samples = samples.data(), made.n = int(samples.size());
    return made;
  }
};

// Scale and shift that a stage's BatchNorm amounts to.
template <class T>
void affine_of(const T* gamma, const T* beta, const T* mean, const T* invstd, int c, T* scale, T* shift) {
  for (int i = 0; i < c; ++i) scale[i] = gamma[i] * invstd[i], shift[i] = beta[i] - mean[i] * scale[i];
}

// Sums over tasks, in order: [tasks][2][c] -> two lists of c.
template <class T>
void add_up(const T* sums, int tasks, int c, double* first, double* second) {
  for (int i = 0; i < c; ++i) first[i] = second[i] = 0;
  for (int task = 0; task < tasks; ++task, sums += 2 * c)
    for (int i = 0; i < c; ++i) first[i] += double(sums[i]), second[i] += double(sums[c + i]);
}

// Mean and variance of all tasks' pixels from each task's pivot and sums about it ([tasks][3][c]), merged in order
// (Chan, Golub, LeVeque 1983). Every sample has `bands` tasks, all of `band_rows` rows but the last.
template <class T>
void merge_statistics(const T* sums, int tasks, int h, int w, int band_rows, int c, double* mean, double* variance) {
  const int bands = int(ceil_div(h, band_rows));
  std::fill_n(mean, c, 0.0), std::fill_n(variance, c, 0.0);
  double count = 0;
  for (int task = 0; task < tasks; ++task, sums += 3 * c) {
    const int begin = task % bands * band_rows;
    const double here = double(std::min(band_rows, h - begin)) * w, share = here / (count + here);
    for (int i = 0; i < c; ++i) {
      const double off = double(sums[c + i]) / here, apart = double(sums[i]) + off - mean[i];
      variance[i] += double(sums[2 * c + i]) - off * off * here + apart * apart * count * share;  // times the pixels
      mean[i] += apart * share;
    }
    count += here;
  }
  for (int i = 0; i < c; ++i) variance[i] = std::max(0.0, variance[i] / std::max(count, 1.0));
}

// [parts][size] -> the sum, in order; `size` in tasks.
template <class T>
void reduce_parts(TaskList& list, const T* parts, int count, int64_t size, T* out) {
  constexpr int64_t kEach = 1 << 14;
  list.add(
      [=](int task) {
        const int64_t begin = task * kEach, end = std::min(size, begin + kEach);
        for (int64_t i = begin; i < end; ++i) out[i] = parts[i];
        for (int part = 1; part < count; ++part)
          for (int64_t i = begin; i < end; ++i) out[i] += parts[part * size + i];
      },
      int(ceil_div(size, kEach)));
}

using Forward = std::tuple<Tensor, Tensor, Tensor>;

template <class T>
Forward run_forward(const Tensor& x_in, const std::vector<Tensor>& depthwise, const std::vector<Tensor>& pointwise,
                    const std::vector<Tensor>& gamma, const std::vector<Tensor>& beta,
                    const std::vector<Tensor>& running_mean, const std::vector<Tensor>& running_var, const Mask& open,
                    const ChainOptions& options) {
  Chain<T> chain(x_in, pointwise, open, options);
  const TorchParallel parallel;
  CallCounters counters;
  const TrainKernels<T>& kernels = kernels_without_tiles<T>().train;
  const int c = chain.c, stages = chain.stages;
  const ScalarType type = x_in.scalar_type();

  int64_t packed_size = 0;
  for (int k = 0; k < stages; ++k)
    packed_size += PackedWeights<T>::depthwise_size(pointwise[k].size(1)) +
                   PackedWeights<T>::pointwise_size(pointwise[k].size(0), pointwise[k].size(1));
  PackedWeights<T> packed(packed_size, 0);
  std::vector<T> ones(size_t(c), T(1)), zeros(size_t(c), T(0));
  chain.alive.reserve(size_t(6 * stages));
  std::vector<const T*> taps;
  std::vector<Pointwise<T>> products;
  for (int k = 0; k < stages; ++k) {
    const int from = int(pointwise[k].size(1));
    taps.push_back(depthwise.empty() ? nullptr : packed.depthwise(chain.values(depthwise[k]), from));
    products.push_back(packed.pointwise(chain.values(pointwise[k]), ones.data(), zeros.data(), c, from));
  }
  packed.run(parallel);

  Tensor out = new_tensor({chain.n, c, chain.h, chain.w}, type, true);
  Tensor raw = new_tensor({int64_t(stages) * chain.n, c, chain.h, chain.w}, type, true);
  Tensor stats = new_tensor({stages, kStatistics, c}, type);
  T *raw_data = raw.template mutable_data_ptr<T>(), *stats_data = stats.template mutable_data_ptr<T>();
  T* out_data = out.template mutable_data_ptr<T>();
  const int64_t sample_size = int64_t(chain.h) * chain.w * c;
  const int rows = band_rows(int(chain.samples.size()), chain.h);
  const int tasks = tasks_of(int(chain.samples.size()), chain.h, rows);
  Tensor sums = new_tensor({std::max(tasks, 1), 3, c}, type);
  T* sums_data = sums.template mutable_data_ptr<T>();
  std::vector<T> scale(size_t(stages) * c), shift(size_t(stages) * c);
  std::vector<double> means(static_cast<size_t>(c)), variances(static_cast<size_t>(c));
  Runner runner(parallel);
  TaskList list;
  for (int k = 0; k < stages; ++k) {
    const T *mean = chain.values(running_mean[k]), *variance = chain.values(running_var[k]);
    TrainForwardJob<T> job = {};
    job.stage = chain.stage(k, taps[size_t(k)], raw_data, scale.data(), shift.data());
    job.pointwise = products[size_t(k)];
    job.y = raw_data + k * chain.raw_size();
    job.sums = sums_data, job.band_rows = rows, job.macs = counters.macs;
    list.add(kernels.forward, job, tasks);
    runner.run(list);
    T* of_stage = stats_data + int64_t(k) * kStatistics * c;
    const bool of_batch = !options.frozen && chain.pixels > 0;
    if (of_batch) merge_statistics(sums_data, tasks, chain.h, chain.w, rows, c, means.data(), variances.data());
    for (int i = 0; i < c; ++i) {
      const double m = of_batch ? means[size_t(i)] : double(mean[i]);
      const double v = of_batch ? variances[size_t(i)] : double(variance[i]);
      of_stage[kMean * c + i] = T(m), of_stage[kVariance * c + i] = T(v);
      of_stage[kInvstd * c + i] = T(1 / std::sqrt(v + options.eps));
    }
    affine_of(chain.values(gamma[k]), chain.values(beta[k]), of_stage, of_stage + kInvstd * c, c,
              scale.data() + int64_t(k) * c, shift.data() + int64_t(k) * c);
  }
  TrainApplyJob<T> job = {};
  const int last = stages - 1;
  job.y = raw_data + last * chain.raw_size();
  job.scale = scale.data() + int64_t(last) * c, job.shift = shift.data() + int64_t(last) * c;
  job.relu = options.final_relu;
  job.residual = options.residual ? chain.x.template const_data_ptr<T>() : nullptr;
  job.out = out_data, job.samples = chain.samples.data(), job.n = int(chain.samples.size());
  job.h = chain.h, job.w = chain.w, job.c = c, job.band_rows = rows;
  list.add(kernels.apply, job, tasks);
  const auto clear = [&](T* to) {
    list.add([=](int) { std::memset(to, 0, size_t(sample_size) * sizeof(T)); }, 1);
  };
  for (int i = 0; i < chain.n; ++i) {
    if (open[i]) continue;
    clear(out_data + i * sample_size);
    for (int k = 0; k < stages; ++k) clear(raw_data + k * chain.raw_size() + i * sample_size);
  }
  runner.run(list);
  return {out, raw, stats};
}

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Gradients: x; depthwise [stages][9][c_in] flat; pointwise [stages][c][c_in] flat; gamma and beta [stages][2][c].
template <class T>
Backward run_backward(const Tensor& grad_in, const Tensor& x_in, const std::vector<Tensor>& depthwise,
                      const std::vector<Tensor>& pointwise, const std::vector<Tensor>& gamma,
                      const std::vector<Tensor>& beta, const Tensor& out_in, const Tensor& raw, const Tensor& stats,
                      const Mask& open, const ChainOptions& options, const std::vector<bool>& wanted) {
  Chain<T> chain(x_in, pointwise, open, options);
  const TorchParallel parallel;
  CallCounters counters;
  const TrainKernels<T>& kernels = kernels_without_tiles<T>().train;
  const int c = chain.c, stages = chain.stages;
  const bool want_x = wanted[0], want_depthwise = wanted[1] && !depthwise.empty(), want_pointwise = wanted[2];
  const ScalarType type = x_in.scalar_type();
  const Tensor grad = nhwc(grad_in);

  int64_t packed_size = 0, depthwise_size = 0, pointwise_size = 0;
  for (int k = 0; k < stages; ++k) {
    const int64_t from = pointwise[k].size(1);
    packed_size += 2 * PackedWeights<T>::depthwise_size(from) + PackedWeights<T>::pointwise_size(from, c);
    depthwise_size += 9 * from, pointwise_size += from * c;
  }
  PackedWeights<T> packed(packed_size, 0);
  const int widest = std::max(c, chain.c_in);
  chain.alive.reserve(size_t(6 * stages));
  std::vector<const T*> taps, flipped;
  std::vector<Pointwise<T>> products;
  for (int k = 0; k < stages; ++k) {
    const int from = int(pointwise[k].size(1));
    const T* weight = chain.values(pointwise[k]);
    taps.push_back(nullptr), flipped.push_back(nullptr);
    if (!depthwise.empty()) {
      const T* tap = chain.values(depthwise[k]);
      taps.back() = packed.depthwise(tap, from), flipped.back() = packed.flipped(tap, from);
    }
    products.push_back(packed.transposed(weight, from, c));
  }
  packed.run(parallel);

  Tensor grad_x = new_tensor({want_x ? chain.n : 0, chain.c_in, chain.h_in, chain.w_in}, type, true);
  Tensor grad_depthwise = new_tensor({want_depthwise ? depthwise_size : 0}, type);
  Tensor grad_pointwise = new_tensor({want_pointwise ? pointwise_size : 0}, type);
  Tensor grad_norms = new_tensor({stages, 2, c}, type);
  const int samples = int(chain.samples.size());
  const T *raw_data = raw.template const_data_ptr<T>(), *stats_data = stats.template const_data_ptr<T>();
  std::vector<T> scale(size_t(stages) * c), shift(size_t(stages) * c);
  for (int k = 0; k < stages; ++k) {
    const T* of_stage = stats_data + int64_t(k) * kStatistics * c;
    affine_of(chain.values(gamma[k]), chain.values(beta[k]), of_stage, of_stage + kInvstd * c, c,
              scale.data() + int64_t(k) * c, shift.data() + int64_t(k) * c);
  }
  const T* relu_out = options.final_relu ? out_in.template const_data_ptr<T>() : nullptr;
  const auto output = [&](int k) -> TrainOutput<T> {
    const T* of_stage = stats_data + int64_t(k) * kStatistics * c;
    // the ReLU between stages is passed by `train_depthwise`
    return {raw_data + k * chain.raw_size(), of_stage, of_stage + kInvstd * c, k == stages - 1 ? relu_out : nullptr};
  };

  Runner runner(parallel);
  TaskList list;
  const int rows = band_rows(samples, chain.h), tasks = tasks_of(samples, chain.h, rows);
  const int in_rows = band_rows(samples, chain.h_in), in_tasks = tasks_of(samples, chain.h_in, in_rows);
  const int max_tasks = std::max({tasks, in_tasks, 1});
  Tensor sums = new_tensor({max_tasks, 2, c}, type);
  T* sums_data = sums.template mutable_data_ptr<T>();
  std::vector<double> first(static_cast<size_t>(c)), second(static_cast<size_t>(c));
  std::vector<T> gains(static_cast<size_t>(c)), slopes(static_cast<size_t>(c)), mean_grads(static_cast<size_t>(c));
  T* norms = grad_norms.template mutable_data_ptr<T>();
  // the gradient of a stage's output, behind its BatchNorm and ReLU: at first the caller's
  const T* above = grad.template const_data_ptr<T>();
  {
    TrainSumsJob<T> job = {};
    job.output = output(stages - 1), job.grad = above, job.sums = sums_data;
    job.samples = chain.samples.data(), job.n = samples, job.h = chain.h, job.w = chain.w, job.c = c;
    job.band_rows = rows;
    list.add(kernels.sums, job, tasks);
    runner.run(list);
  }
  int sum_tasks = tasks;
  Tensor between = new_tensor({int64_t(chain.n) * chain.h * chain.w * std::max(c, stages == 1 ? chain.c_in : c)}, type);
  // what a pointwise product of every pixel gives is the input's gradient itself
  const bool direct = depthwise.empty() && options.stride == 1 && !options.relu_input && want_x;
  Tensor depthwise_out = new_tensor({direct ? 0 : int64_t(chain.n) * chain.h * chain.w * widest}, type);
  T* at_depthwise = want_depthwise ? grad_depthwise.template mutable_data_ptr<T>() + depthwise_size : nullptr;
  T* at_pointwise = want_pointwise ? grad_pointwise.template mutable_data_ptr<T>() + pointwise_size : nullptr;
  for (int k = stages - 1; k >= 0; --k) {
    const int from = int(pointwise[k].size(1));
    const TrainOutput<T> out = output(k);
    add_up(sums_data, sum_tasks, c, first.data(), second.data());
    const T* weights = chain.values(gamma[k]);
    const double pixels = double(std::max<int64_t>(chain.pixels, 1));
    for (int i = 0; i < c; ++i) {
      norms[int64_t(k) * 2 * c + i] = T(second[size_t(i)]), norms[int64_t(k) * 2 * c + c + i] = T(first[size_t(i)]);
      const double gain = double(weights[i]) * double(out.invstd[i]);
      const double slope = options.frozen ? 0 : -gain * double(out.invstd[i]) * second[size_t(i)] / pixels;
      gains[size_t(i)] = T(gain), slopes[size_t(i)] = T(slope);
      mean_grads[size_t(i)] = T(options.frozen ? 0 : first[size_t(i)] / pixels);
    }
    const bool on = want_x || k > 0;  // whether anything before this stage wants a gradient
    const int parts = product_parts(int64_t(samples) * chain.h, int64_t(from) * c);
    Tensor partial_product = new_tensor({want_pointwise ? int64_t(parts) * from * c : 0}, type);
    TrainProductJob<T> product = {};
    product.stage = chain.stage(k, taps[size_t(k)], raw_data, scale.data(), shift.data());
    product.output = out, product.grad = above;
    product.gain = gains.data(), product.slope = slopes.data(), product.mean_grad = mean_grads.data();
    if (on || want_depthwise) product.transposed = products[size_t(k)];
    product.grad_d = direct ? grad_x.template mutable_data_ptr<T>() : depthwise_out.template mutable_data_ptr<T>();
    if (want_pointwise) product.grad_weight = partial_product.template mutable_data_ptr<T>();
    product.parts = parts, product.macs = counters.macs;
    if (samples > 0) list.add(kernels.product, product, parts);
    runner.run(list);

    const int stage_rows = k == 0 ? in_rows : rows, stage_tasks = k == 0 ? in_tasks : tasks;
    Tensor partial_depthwise = new_tensor({want_depthwise ? int64_t(std::max(stage_tasks, 1)) * 9 * from : 0}, type);
    TrainDepthwiseJob<T> down = {};
    down.stage = product.stage;
    down.grad_d = product.grad_d, down.flipped = flipped[size_t(k)];
    if (k == 0 && options.residual) down.added = grad.template const_data_ptr<T>(), down.added_out = relu_out;
    T* made = k == 0 ? (want_x ? grad_x.template mutable_data_ptr<T>() : nullptr)
                     : between.template mutable_data_ptr<T>();
    down.grad_x = made;
    if (k > 0) {
      const TrainOutput<T> before = output(k - 1);
      down.mean = before.mean, down.invstd = before.invstd, down.sums = sums_data;
    }
    if (want_depthwise) down.grad_weight = partial_depthwise.template mutable_data_ptr<T>();
    down.band_rows = stage_rows, down.macs = counters.macs;
    if (!direct && (down.grad_x || down.grad_weight)) list.add(kernels.depthwise, down, stage_tasks);
    runner.run(list);
    sum_tasks = stage_tasks;

    if (want_pointwise) {
      at_pointwise -= int64_t(from) * c;
      if (samples == 0) std::memset(product.grad_weight, 0, size_t(parts) * from * c * sizeof(T));
      reduce_parts(list, static_cast<const T*>(product.grad_weight), parts, int64_t(from) * c, at_pointwise);
    }
    if (want_depthwise) {
      at_depthwise -= 9 * int64_t(from);
      if (samples == 0) std::memset(down.grad_weight, 0, 9 * size_t(from) * sizeof(T));
      reduce_parts(list, static_cast<const T*>(down.grad_weight), std::max(stage_tasks, 1), 9 * int64_t(from),
                   at_depthwise);
    }
    runner.run(list);
    above = made;
  }
  if (want_x) {
    const int64_t size = int64_t(chain.h_in) * chain.w_in * chain.c_in;
    for (int i = 0; i < chain.n; ++i)
      if (!open[i]) std::memset(grad_x.template mutable_data_ptr<T>() + i * size, 0, size_t(size) * sizeof(T));
  }
  return {grad_x, grad_depthwise, grad_pointwise, grad_norms};
}

}  // namespace dynroute
