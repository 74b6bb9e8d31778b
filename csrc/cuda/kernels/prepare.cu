// prepare: what an operator's kernel wants of a call's own tensors (params_ops.h), before it.
//
// Work: each value of the packed weights is made by one thread, which reads one value of the weights (of a matrix in
// 16 bits along k, as both lie; in float across); the list of open samples by one warp, in order; closed samples'
// outputs are cleared by all threads, 8 bytes at a time where that divides them (float: 16). A few microseconds that
// the network, whose weights are packed once, does not have.
#include "prepare.h"
#include "primitives.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline float as_float(const void* values, int64_t at) {
  return float(static_cast<const T*>(values)[at]);
}

template <class T>
__device__ inline void pack_matrix(const PackedMatrix& from, int thread, int threads) {
  const Matrix& to = from.to;
  T* const weight = static_cast<T*>(const_cast<void*>(to.weight));
  float* const shift = const_cast<float*>(to.shift);
  for (int i = thread; i < to.n_pad * to.k_pad; i += threads) {
    const int row = i / from.row, column = i - row * from.row;
    const int n = kIsFloat<T> ? column : row, k = kIsFloat<T> ? row : column;
    float value = 0;
    if (n < to.n && k < to.k) value = as_float<T>(from.weight, int64_t(n) * to.k + k) * as_float<T>(from.scale, n);
    weight[i] = T(value);
  }
  for (int n = thread; n < to.n_pad; n += threads) shift[n] = n < to.n ? as_float<T>(from.shift, n) : 0;
}

template <class T>
__device__ inline void prepare(const PrepareParams& p) {
  const int thread = blockIdx.x * kThreads + threadIdx.x, threads = gridDim.x * kThreads;
#pragma unroll 1
  for (int i = 0; i < kMostMatrices; ++i) {
    if (p.matrix[i].weight) pack_matrix<T>(p.matrix[i], thread, threads);
    const PackedDepthwise& taps = p.depthwise[i];
    if (!taps.weight) continue;
    for (int at = thread; at < 9 * taps.c; at += threads) {
      const int tap = at / taps.channels, channel = at - tap * taps.channels;
      taps.to[at] = as_float<T>(taps.weight, channel * 9 + tap);
    }
  }
#pragma unroll
  for (const WidenedValues& widened : p.widened)
    if (widened.from)
      for (int i = thread; i < widened.count; i += threads) widened.to[i] = as_float<T>(widened.from, i);
  if (p.zeroed)
    for (int i = thread; i < p.zeroed_count; i += threads) p.zeroed[i] = 0;
  if (!p.open) return;
  if (thread < 32) {
    int count = 0;
    for (int first = 0; first < p.n; first += 32) {
      const int sample = first + thread;
      const bool is = sample < p.n && p.open[sample];
      append(p.list.samples, count, is, sample);
    }
    if (thread == 0) *p.list.count = count;
  }
  struct alignas(4 * sizeof(T)) Four {
    T value[4];
  };
  const bool by_four = p.out_size % 4 == 0;
  for (int sample = 0; sample < p.n; ++sample) {
    if (p.open[sample]) continue;
    T* const to = static_cast<T*>(p.out) + sample * p.out_size;
    if (by_four)
      for (int64_t i = thread; i < p.out_size / 4; i += threads) reinterpret_cast<Four*>(to)[i] = Four{};
    else
      for (int64_t i = thread; i < p.out_size; i += threads) to[i] = T(0.f);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(prepare, PrepareParams, kThreads)
