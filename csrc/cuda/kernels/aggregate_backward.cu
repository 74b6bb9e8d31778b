// aggregate_backward: gradients of X's sources, and of the alphas, in one pass over X's gradient G:
//   keep, down: alpha G;   up: alpha (the bilinear x2's adjoint) G;   an alpha: sum of G times what it weighs.
// The adjoint is a gather: pixel i of up is read by the output pixels 2i - 1 to 2i + 2 of each dimension with the
// weights 1/4, 3/4, 3/4, 1/4, where an index beyond the border means the border, which the x2 repeats. So no atomics,
// and the same bits in any batch, on any device. A source whose alpha is 0 is not read; its gradients are 0.
//
// Work: a thread makes 2 x 2 pixels of keep and down and one of up, of a 16-byte group of channels, neighbouring
// threads neighbouring groups; it loads 4 x 4 pixels of G, of which the middle four are its own. A task is
// kAggregateBackwardRun such units of each of a block's threads. Memory: G once and its neighbours' 12 of 16 loads from
// L1 and L2; each source once, each gradient once. Alphas: a thread's sums are float, over a few hundred products;
// threads', and then tasks', are added up in double, as the sum is small beside its parts; the last block to finish a
// sample does the latter, in the tasks' order.
#include "aggregate_backward.h"
#include "arrival.cuh"
#include "block_sum.cuh"
#include "primitives.cuh"

namespace dynroute::cuda {

// One source of X's size: its gradient at four pixels, and what its alpha gets.
template <class T>
__device__ inline void same_size(const T* source, T* out, float weight, const int (&at)[4], const bool (&is)[4],
                                 const float (&g)[4][kVector<T>], float& sum) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!is[i]) continue;
    float values[kVector<T>];
    if (source && weight != 0) {
      unpack<T>(load_group(source + at[i]), values);
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) sum = fmaf(g[i][k], values[k], sum);
    }
    if (!out) continue;
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) values[k] = weight * g[i][k];
    store_global(out + at[i], pack<T>(values));
  }
}

template <class T>
__device__ inline void backward_unit(const AggregateBackwardParams& p, int64_t sample, int unit,
                                     const float (&weights)[kPaths], float (&sums)[kPaths]) {
  constexpr int V = kVector<T>;
  const int pair = unit / p.groups, y = pair / p.across, x = pair - y * p.across,
            channel = (unit - pair * p.groups) * V;
  const int64_t size = int64_t(p.h) * p.w * p.c;
  const auto map = [&](const void* of, int64_t values) {
    return of ? static_cast<const T*>(of) + sample * values : nullptr;
  };
  const auto out = [&](void* of, int64_t values) { return of ? static_cast<T*>(of) + sample * values : nullptr; };
  const T* const grad = map(p.grad, size);
  const bool of_up = p.grad_up || p.up;

  // between columns first, row by row: what is kept is one row's blend and the four own pixels
  float own[4][V], blended[V] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = min(max(2 * y - 1 + i, 0), p.h - 1) * p.w;
    if (!of_up && (i == 0 || i == 3)) continue;
    float values[4][V];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (of_up || j == 1 || j == 2)
        unpack<T>(load_group(grad + (row + min(max(2 * x - 1 + j, 0), p.w - 1)) * p.c + channel), values[j]);
    const float share = i == 0 || i == 3 ? 0.25f : 0.75f;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      if (i == 1 || i == 2) own[2 * i - 2][k] = values[1][k], own[2 * i - 1][k] = values[2][k];
      if (of_up)
        blended[k] =
            fmaf(share, fmaf(0.75f, values[1][k] + values[2][k], 0.25f * (values[0][k] + values[3][k])), blended[k]);
    }
  }
  int at[4];
  bool is[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    is[i] = 2 * y + i / 2 < p.h && 2 * x + i % 2 < p.w;
    at[i] = ((2 * y + i / 2) * p.w + 2 * x + i % 2) * p.c + channel;
  }
  same_size<T>(map(p.keep, size), out(p.grad_keep, size), weights[kKeep], at, is, own, sums[kKeep]);
  same_size<T>(map(p.down, size), out(p.grad_down, size), weights[kDown], at, is, own, sums[kDown]);
  if (!of_up) return;
  const int here = (y * p.across + x) * p.c + channel;  // of up, whose sides are half of X's
  if (p.up && weights[kUp] != 0) {
    float values[V];
    unpack<T>(load_group(map(p.up, size / 4) + here), values);
#pragma unroll
    for (int k = 0; k < V; ++k) sums[kUp] = fmaf(blended[k], values[k], sums[kUp]);
  }
  if (!p.grad_up) return;
#pragma unroll
  for (int k = 0; k < V; ++k) blended[k] *= weights[kUp];
  store_global(out(p.grad_up, size / 4) + here, pack<T>(blended));
}

template <class T>
__device__ inline void aggregate_backward(const AggregateBackwardParams& p) {
  __shared__ double scratch[kThreads / 32];
  __shared__ int last;
  const int units = ceil_div(p.h, 2) * p.across * p.groups, tasks = p.tasks;
  for (int at = blockIdx.x; at < p.n * tasks; at += gridDim.x) {
    const int64_t sample = at / p.tasks;
    const int task = at % p.tasks;
    float weights[kPaths], sums[kPaths] = {};
#pragma unroll
    for (int path = 0; path < kPaths; ++path)
      weights[path] = p.alphas ? float(static_cast<const T*>(p.alphas)[sample * kPaths + path]) : 1.f;
#pragma unroll 1
    for (int i = 0; i < kAggregateBackwardRun; ++i) {
      const int unit = (task * kAggregateBackwardRun + i) * kThreads + threadIdx.x;
      if (unit < units) backward_unit<T>(p, sample, unit, weights, sums);
    }
    if (!p.grad_alphas) continue;
    double* const partials = p.partials + sample * tasks * kPaths;
#pragma unroll
    for (int path = 0; path < kPaths; ++path) {
      const double sum = block_sum(sums[path], scratch);
      if (threadIdx.x == 0) partials[task * kPaths + path] = sum;
    }
    if (!arrive_last(p.arrivals + sample, tasks, &last)) continue;
#pragma unroll 1
    for (int path = 0; path < kPaths; ++path) {
      double sum = 0;
      for (int i = threadIdx.x; i < tasks; i += kThreads) sum += __ldcg(partials + i * kPaths + path);
      sum = block_sum(sum, scratch);
      if (threadIdx.x == 0) static_cast<T*>(p.grad_alphas)[sample * kPaths + path] = T(float(sum));
    }
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(aggregate_backward, AggregateBackwardParams, kThreads, kAggregateBackwardResident)
