// The gate: column sums of ReLU(A * weights + shift) over a tile's pixels, straight from the accumulators; and alphas
// from the sums of all tiles.
#pragma once
#include "aggregate_route.h"
#include "gemm.cuh"
#include "pull.cuh"

namespace dynroute::cuda {

// Chunks that there is room for from `ring` to the end of the block's dynamic shared memory.
__device__ inline int ring_length(const void* ring) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int room = shared_bytes() - int(static_cast<const unsigned char*>(ring) - memory);
  return min(room / kAggregateChunk, kMaxChunks);
}
// Adds to totals[Tile::kWarpRows][n_pad] the columns from n on: ReLU(sum + shift) over rows whose bit in `rows` (bit i:
// row Tile::row(i)) is set. Lanes that share columns halve them between each other, so 8 columns take 4 + 2 + 1
// shuffles; each total is always the same thread's, so that no barrier is needed.
template <class Tile>
__device__ inline void add_columns(const typename Tile::Accumulators& sums, unsigned rows, int n, int n_pad,
                                   const float* shift, float* totals) {
  static_assert(Tile::kColumns == 8, "halved until one or two are left");
  float column[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int at = n + Tile::column(i);
    const float here = at < n_pad ? shift[at] : 0;
    column[i] = 0;
#pragma unroll
    for (int row = 0; row < Tile::kRows; ++row)
      column[i] += rows >> row & 1 ? fmaxf(Tile::value(sums, row, i) + here, 0) : 0;
  }
  int first = 0;  // of the columns that this lane keeps
#pragma unroll
  for (int lanes = 16, half = 4; lanes >= Tile::kFirstLane; lanes /= 2, half /= 2) {
    const bool upper = threadIdx.x & lanes;
    first += upper ? half : 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float give = upper ? column[i] : column[i + half], keep = upper ? column[i + half] : column[i];
      column[i] = keep + __shfl_xor_sync(~0u, give, lanes);
    }
  }
  constexpr int kKept = Tile::kCores ? 2 : 1;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int at = n + Tile::column(first + i);
    if (at < n_pad) totals[Tile::warp_row() * n_pad + at] += column[i];
  }
}

// By one whole block: the gate's values from the sums of its tasks, mean -> fc -> activation, which one thread hands to
// `write`. Tasks are added in an order that depends on their number and n_pad only: some sums per column, then these.
// `end` says what of, when it is asked, so that nothing of it has to be kept in registers: gate() the Matrix;
// partials() [tasks][n_pad], of the sample; pixels(); fc_weight() [gates][n], fc_bias() [gates].
template <class End, class Write>
__device__ inline void finish_gate(const End& end, int tasks, int gates, int which,
                                   float* scratch /* [max(512, n_pad)], then 12 */, const Write& write) {
  const int n = end.gate().n, n_pad = end.gate().n_pad, groups = n_pad / 4;
  const int parts = groups < kThreads ? kThreads / groups : 1;
  // asked for before the barriers, behind which they are needed
  float weight[kPaths] = {}, bias[kPaths] = {};
#pragma unroll
  for (int g = 0; g < kPaths; ++g) {
    if (g < gates) bias[g] = end.fc_bias()[g];
    if (g < gates && threadIdx.x < n) weight[g] = end.fc_weight()[g * n + threadIdx.x];
  }
  const float4* partials = reinterpret_cast<const float4*>(end.partials());
  for (int unit = threadIdx.x; unit < groups * parts; unit += kThreads) {
    float4 sum = {};
#pragma unroll 16
    for (int task = unit / groups; task < tasks; task += parts) {
      const float4 value = __ldcg(partials + task * groups + unit % groups);
      sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
    }
    reinterpret_cast<float4*>(scratch)[unit] = sum;
  }
  __syncthreads();
  float dot[kPaths] = {};
  for (int c = threadIdx.x; c < n; c += kThreads) {
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum += scratch[part * n_pad + c];
    const float mean = sum / end.pixels();
#pragma unroll
    for (int g = 0; g < kPaths; ++g)
      if (g < gates) dot[g] = fmaf(mean, c < kThreads ? weight[g] : end.fc_weight()[g * n + c], dot[g]);
  }
  float* dots = scratch + max(4 * kThreads, n_pad);  // [4][kPaths]
#pragma unroll
  for (int g = 0; g < kPaths; ++g) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) dot[g] += __shfl_xor_sync(~0u, dot[g], lanes);
    if (threadIdx.x % 32 == 0) dots[threadIdx.x / 32 * kPaths + g] = dot[g];
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  float value[kPaths], largest = 0, total = 0;
#pragma unroll
  for (int g = 0; g < kPaths; ++g) {
    value[g] = (dots[g] + dots[kPaths + g]) + (dots[2 * kPaths + g] + dots[3 * kPaths + g]) + bias[g];
    largest = g == 0 ? value[0] : g < gates ? fmaxf(largest, value[g]) : largest;
  }
  const Activation activation = Activation(which);
#pragma unroll
  for (int g = 0; g < kPaths; ++g) {
    if (activation == Activation::kTanh) value[g] = fmaxf(0, tanhf(value[g]));
    else if (activation == Activation::kSigmoid) value[g] = 1 / (1 + expf(-value[g]));
    else value[g] = expf(value[g] - largest), total += g < gates ? value[g] : 0;
  }
#pragma unroll
  for (int g = 0; g < kPaths; ++g)
    if (activation == Activation::kSoftmax) value[g] /= total;
  write(value);
}

}  // namespace dynroute::cuda
