// What the training operators share: how sums are cut and merged, and what BatchNorm makes of them.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "bind.h"
#include "bindings/train_checks.h"
#include "contract/geometry.h"
#include "packed_weights.h"
#include "synchronise.h"

namespace dynroute {

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

template <class T>
Raw<T> raw_of(const Tensor& map) {
  if (map.scalar_type() == ScalarType::BFloat16) return {nullptr, static_cast<const bf16*>(map.const_data_ptr())};
  return {map.template const_data_ptr<T>(), nullptr};
}
template <class T>
RawOut<T> raw_out(Tensor& map) {
  if (map.scalar_type() == ScalarType::BFloat16) return {nullptr, static_cast<bf16*>(map.mutable_data_ptr())};
  return {map.template mutable_data_ptr<T>(), nullptr};
}

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
// (Chan, Golub, LeVeque 1983). Every sample has `bands` tasks, all of `band_rows` rows but the last; `used` says whose
// count, by their place among the samples, null: all.
template <class T>
void merge_statistics(const T* sums, int tasks, int h, int w, int band_rows, int c, double* mean, double* variance,
                      const std::vector<bool>* used = nullptr) {
  const int bands = int(ceil_div(h, band_rows));
  std::fill_n(mean, c, 0.0), std::fill_n(variance, c, 0.0);
  double count = 0;
  for (int task = 0; task < tasks; ++task, sums += 3 * c) {
    if (used && !(*used)[size_t(task / bands)]) continue;
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

// A BatchNorm's parameters and running statistics, [c] each.
template <class T>
struct Norm {
  const T *gamma, *beta, *mean, *variance;
  int c;
};

// What it makes of a call's sums: statistics [kStatistics][c] (mean, inverse deviation, and the unbiased variance, for
// the running one; the running ones themselves where they are frozen or there is no pixel), scale and shift.
template <class T>
void finish_norm(const Norm<T>& norm, const double* mean, const double* variance, int64_t pixels, bool frozen,
                 double eps, T* stats, T* scale, T* shift) {
  const bool of_batch = !frozen && pixels > 0;
  const double unbiased = double(pixels) / double(std::max<int64_t>(pixels - 1, 1));
  for (int i = 0; i < norm.c; ++i) {
    const double m = of_batch ? mean[i] : double(norm.mean[i]);
    const double v = of_batch ? variance[i] : double(norm.variance[i]);
    stats[kMean * norm.c + i] = T(m), stats[kInvstd * norm.c + i] = T(1 / std::sqrt(v + eps));
    stats[kVariance * norm.c + i] = of_batch ? T(v * unbiased) : norm.variance[i];
  }
  affine_of(norm.gamma, norm.beta, stats, stats + kInvstd * norm.c, norm.c, scale, shift);
}

// BatchNorm's backward, from the sums of the gradient and of its product with the normalised output: gradients of gamma
// and beta, and what the gradient of the raw output is made with (see TrainProductJob). Where several processes share
// the BatchNorm, `all` are the sums of all of them; the gradients stay those of the own samples.
template <class T>
class NormBackward {
 public:
  NormBackward(const Norm<T>& norm, const T* invstd, const double* sum, const double* product, int64_t pixels,
               bool frozen, T* grad_gamma, T* grad_beta, const NormSums* all = nullptr)
      : gain(size_t(norm.c)), slope(size_t(norm.c)), mean_grad(size_t(norm.c)) {
    for (int i = 0; i < norm.c; ++i) grad_gamma[i] = T(product[i]), grad_beta[i] = T(sum[i]);
    if (all) sum = all->sum.data(), product = all->product.data(), pixels = all->pixels;
    const double count = double(std::max<int64_t>(pixels, 1));
    for (int i = 0; i < norm.c; ++i) {
      const double g = double(norm.gamma[i]) * double(invstd[i]);
      gain[size_t(i)] = T(g);
      slope[size_t(i)] = T(frozen ? 0 : -g * double(invstd[i]) * product[i] / count);
      mean_grad[size_t(i)] = T(frozen ? 0 : sum[i] / count);
    }
  }
  std::vector<T> gain, slope, mean_grad;
};

// Gradients one after the other in one tensor, each laid out as its weight; for those not wanted there is no room.
template <class T>
class FlatGradients {
 public:
  explicit FlatGradients(int64_t size, ScalarType type) : tensor(new_tensor({size}, type)) {
    next_ = tensor.template mutable_data_ptr<T>();
  }
  T* take(int64_t size) { return std::exchange(next_, next_ + size); }
  Tensor tensor;

 private:
  T* next_;
};

// [parts][9][c] -> their sum as depthwise weights lie, [c][9].
template <class T>
void reduce_taps(TaskList& list, const T* parts, int count, int c, T* out) {
  constexpr int kEach = 64;
  list.add(
      [=](int task) {
        const int begin = task * kEach, some = std::min(c - begin, kEach);
        T sum[9][kEach] = {};
        for (int part = 0; part < count; ++part)
          for (int tap = 0; tap < 9; ++tap) {
            const T* from = parts + (int64_t(part) * 9 + tap) * c + begin;
            for (int i = 0; i < some; ++i) sum[tap][i] += from[i];
          }
        for (int i = 0; i < some; ++i)
          for (int tap = 0; tap < 9; ++tap) out[int64_t(begin + i) * 9 + tap] = sum[tap][i];
      },
      int(ceil_div(c, kEach)));
}

// The gradient of a product's weights, [rows][columns]: from each task's own sum, or, where the maps have few pixels
// beside so many sums, from the product's factors, which are kept. Memory lives as long as this does.
template <class T>
class ProductGradient {
 public:
  ProductGradient(T* out, int rows, int columns, int tasks, int64_t pixels, int n, ScalarType type)
      : out_(out), rows_(rows), columns_(columns), tasks_(tasks) {
    if (!out) return;
    const int64_t kept = pixels * n * (stride(rows) + stride(columns)), sums = int64_t(tasks) * rows * columns;
    keeps_ = kept <= sums;
    memory_ = new_tensor({keeps_ ? kept : sums}, type);
    sums_ = memory_->template mutable_data_ptr<T>();
    if (keeps_) a_ = sums_, b_ = a_ + pixels * n * stride(rows), sums_ = nullptr;
  }
  T* sums() const { return sums_; }  // [tasks][rows][columns]
  T* a() const { return a_; }        // the factors
  T* b() const { return b_; }
  // The work that is left, once they are there.
  void finish(TaskList& list, const std::vector<int>& samples, int pixels) const {
    if (!out_) return;
    if (samples.empty() || tasks_ == 0) {
      std::memset(out_, 0, size_t(rows_) * columns_ * sizeof(T));
    } else if (keeps_) {
      const TrainOuterJob<T> job = {a_, b_, out_, rows_, columns_, samples.data(), int(samples.size()), pixels};
      list.add(kernels_without_tiles<T>().train.outer, job, int(ceil_div(rows_, kOuterRows)));
    } else {
      reduce_parts(list, static_cast<const T*>(sums_), tasks_, int64_t(rows_) * columns_, out_);
    }
  }

 private:
  static int64_t stride(int k) { return round_up(k, kPanel) + kPanel; }  // as the kernels' panel_stride
  T *out_, *sums_ = nullptr, *a_ = nullptr, *b_ = nullptr;
  int rows_, columns_, tasks_;
  bool keeps_ = false;
  std::optional<Tensor> memory_;
};

}  // namespace dynroute
