// The backward of an aggregation in one pass over its gradient. The bilinear x2 is a gather in reverse too: pixel i of
// up is read by the output pixels 2i-1, 2i, 2i+1 and 2i+2 of each dimension with the weights 1/4, 3/4, 3/4 and 1/4,
// where an index beyond the border means the border, which the x2 repeats.
// Unit of work: a pair of rows of the gradient and the row of up behind them, in blocks that fit L1. Sums are a block's
// own in the map's type, and added up in double: a gradient's sum is small beside its parts.
#include "aggregate_backward.h"

#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

constexpr int kBlock = 4096, kChunk = 512;  // values of a block, and of its channels at a time

template <class T>
DYNROUTE_INLINE double lanes_sum(Vec<T> v) {
  T lane[Vec<T>::width];
  v.store(lane);
  double sum = 0;
  for (int i = 0; i < Vec<T>::width; ++i) sum += double(lane[i]);
  return sum;
}

// A source of the output's size: its gradient, and the sum of grad * source; both may be null.
template <class T>
struct Same {
  const T* source;
  T* out;
  T weight;
};

// `size` values from `at` on; for keep and down at once, so that grad is read once.
template <class T>
DYNROUTE_INLINE void same_size(const T* grad, const Same<T>* of /* [2] */, int64_t at, int64_t size, double* sums) {
  const Vec<T> first = Vec<T>::set(of[0].weight), second = Vec<T>::set(of[1].weight);
  for (const int64_t end = at + size; at < end; at += kBlock) {
    Vec<T> sum[2] = {Vec<T>::set(0), Vec<T>::set(0)};
    for_channels<T>(int(min<int64_t>(kBlock, end - at)), [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
      const Vec<T> g = load(grad + at + c);
      if (of[0].out) store(of[0].out + at + c, first * g);
      if (of[1].out) store(of[1].out + at + c, second * g);
      if (of[0].source) sum[0] = fma(g, load(of[0].source + at + c), sum[0]);
      if (of[1].source) sum[1] = fma(g, load(of[1].source + at + c), sum[1]);
    });
    for (int i = 0; i < 2; ++i)
      if (of[i].source) sums[i] += lanes_sum(sum[i]);
  }
}

// Row i of up's gradient, and the sum of that row, without the weight, times up's.
template <class T>
double up_row(const AggregateBackwardJob<T>& job, const T* source, int i) {
  const int w = job.w, c = job.c, half = w / 2;
  const int64_t row = int64_t(w) * c;
  const T* grad[4];
  for (int k = 0; k < 4; ++k) grad[k] = job.grad + min(max(2 * i - 1 + k, 0), job.h - 1) * row;
  const Vec<T> near = Vec<T>::set(T(0.75)), far = Vec<T>::set(T(0.25)), alpha = Vec<T>::set(job.sources.up_weight);
  if (source) source += i * (row / 2);
  T* out = job.grad_up ? job.grad_up + i * (row / 2) : nullptr;
  double total = 0;
  T blended[kBlock + 4 * kChunk];  // [2 * pixels + 2][chunk]: gathered between the rows, not yet between columns
  for (int c0 = 0; c0 < c; c0 += kChunk) {
    const int chunk = min(kChunk, c - c0), pixels = max(kBlock / chunk / 2, 1);
    for (int begin = 0; begin < half; begin += pixels) {
      const int end = min(begin + pixels, half);
      T* to = blended;
      for (int x = 2 * begin - 1; x <= 2 * end; ++x, to += chunk) {
        const int64_t from = int64_t(min(max(x, 0), w - 1)) * c + c0;
        for_channels<T>(chunk, [&](int k, auto load, auto store) DYNROUTE_ALWAYS {
          const int64_t at = from + k;
          store(to + k, fma(near, load(grad[1] + at) + load(grad[2] + at),
                            far * (load(grad[0] + at) + load(grad[3] + at))));
        });
      }
      Vec<T> sum = Vec<T>::set(0);
      const T* of = blended;
      for (int x = begin; x < end; ++x, of += 2 * chunk) {
        const int64_t at = int64_t(x) * c + c0;
        for_channels<T>(chunk, [&](int k, auto load, auto store) DYNROUTE_ALWAYS {
          const T* from = of + k;
          const Vec<T> v = fma(near, load(from + chunk) + load(from + 2 * chunk),
                               far * (load(from) + load(from + 3 * chunk)));
          if (source) sum = fma(v, load(source + at + k), sum);
          if (out) store(out + at + k, alpha * v);
        });
      }
      if (source) total += lanes_sum(sum);
    }
  }
  return total;
}

}  // namespace

template <class T>
void aggregate_backward(const AggregateBackwardJob<T>& job, int task) {
  const int rows = cuts::pair_rows(job.w, job.c), begin = task * rows, end = min(begin + rows, (job.h + 1) / 2);
  const int64_t row = int64_t(job.w) * job.c;
  const Sources<T>& from = job.sources;
  double sums[kPaths] = {};
  // a source that weighs nothing is not read, and neither it nor its alpha gets a gradient
  const Same<T> same[2] = {{from.keep_weight != 0 ? from.keep : nullptr, job.grad_keep, from.keep_weight},
                           {from.down_weight != 0 ? from.down : nullptr, job.grad_down, from.down_weight}};
  const T* up = from.up_weight != 0 ? from.up : nullptr;
  const bool of_same = same[0].source || same[0].out || same[1].source || same[1].out;
  for (int i = begin; i < end; ++i) {
    if (up || (job.grad_up && from.up_weight != 0)) sums[kUp] += up_row(job, up, i);
    else if (job.grad_up) std::memset(job.grad_up + i * (row / 2), 0, size_t(row / 2) * sizeof(T));
    if (!of_same) continue;
    double two[2] = {};
    same_size(job.grad, same, 2 * i * row, min(2, job.h - 2 * i) * row, two);
    sums[kKeep] += two[0], sums[kDown] += two[1];
  }
  if (job.sums)
    for (int path = 0; path < kPaths; ++path) job.sums[int64_t(task) * kPaths + path] = sums[path];
}

template void aggregate_backward<float>(const AggregateBackwardJob<float>&, int);
#if defined(DYNROUTE_TARGET_PORTABLE)
template void aggregate_backward<double>(const AggregateBackwardJob<double>&, int);
#endif

}  // namespace dynroute::DYNROUTE_TARGET
