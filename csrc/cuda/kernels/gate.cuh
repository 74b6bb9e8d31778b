// The gate: column sums of ReLU(A * weights + shift) over a tile's pixels, straight from the accumulators; and alphas
// from the sums of all tiles.
#pragma once
#include "aggregate_route.h"
#include "gemm.cuh"
#include "pull.cuh"

namespace dynroute::cuda {

// A thread's sums before the product of a block of columns: the shift of these.
template <class Tile>
__device__ inline void begin_with_shift(typename Tile::Accumulators& sums, const float* shift, unsigned thread) {
#pragma unroll
  for (int j = 0; j < Tile::kColumns; j += 4) {
    const float4 here = *reinterpret_cast<const float4*>(shift + Tile::column(j, thread));
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      Tile::set(sums, i, j, here.x), Tile::set(sums, i, j + 1, here.y);
      Tile::set(sums, i, j + 2, here.z), Tile::set(sums, i, j + 3, here.w);
    }
  }
}
// Adds to a block of columns of totals[Tile::kWarpRows][n_pad]: ReLU(sum) over rows whose bit in `rows` (bit i: row
// Tile::row(i)) is set. Lanes that share columns halve them between each other, so 8 columns take 4 + 2 + 1 shuffles;
// each total is always the same thread's, so that no barrier is needed.
template <class Tile>
__device__ inline void add_columns(const typename Tile::Accumulators& sums, unsigned rows, float* totals, int n_pad,
                                   unsigned thread) {
  constexpr int kColumns = Tile::kColumns, kKept = kColumns * Tile::kFirstLane / 32;
  static_assert(kKept == 1 || kKept == 2, "what is left when lanes have halved them");
  float column[kColumns];
  if (rows == (1u << Tile::kRows) - 1) {  // as nearly always
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      column[i] = relu(Tile::value(sums, 0, i));
#pragma unroll
      for (int row = 1; row < Tile::kRows; ++row) column[i] += relu(Tile::value(sums, row, i));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      column[i] = 0;
#pragma unroll
      for (int row = 0; row < Tile::kRows; ++row) column[i] += rows >> row & 1 ? relu(Tile::value(sums, row, i)) : 0;
    }
  }
  int first = 0;  // of the columns that this lane keeps
#pragma unroll
  for (int lanes = 16, half = kColumns / 2; lanes >= Tile::kFirstLane; lanes /= 2, half /= 2) {
    const bool upper = thread & lanes;
    first += upper ? half : 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float give = upper ? column[i] : column[i + half], keep = upper ? column[i + half] : column[i];
      column[i] = keep + __shfl_xor_sync(~0u, give, lanes);
    }
  }
  float* const to = totals + Tile::warp_row(thread) * n_pad + Tile::column(first, thread);
#pragma unroll
  for (int i = 0; i < kKept; ++i) to[i] += column[i];
}

// By one whole block: the gate's values from the sums of its tasks, mean -> fc -> activation, of which gate g's goes to
// write(g, value) in thread g. A thread adds up the tasks of a part for four columns and multiplies them by fc's
// weights; then threads' sums are added up. The order depends on the number of tasks and n_pad only. `of` says what
// of, when it is asked, so that nothing of it has to be kept in registers: gate() the Matrix; partials()
// [tasks][n_pad], of the sample; pixels(); fc_weight() [gates][n], fc_bias() [gates].
template <class Of, class Write>
__device__ inline void finish_gate(const Of& of, int tasks, int gates, int which,
                                   float* scratch /* [kThreads / 32][kPaths] */, const Write& write) {
  const int n = of.gate().n, groups = of.gate().n_pad / 4, parts = groups < kThreads ? kThreads / groups : 1;
  const float4* partials = reinterpret_cast<const float4*>(of.partials());
  const float bias = threadIdx.x < gates ? of.fc_bias()[threadIdx.x] : 0;
  float dot[kPaths] = {};
  for (int unit = threadIdx.x; unit < groups * parts; unit += kThreads) {
    const int part = unit / groups, group = unit - part * groups;
    float weight[kPaths][4];
#pragma unroll
    for (int g = 0; g < kPaths; ++g)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weight[g][i] = g < gates && 4 * group + i < n ? of.fc_weight()[g * n + 4 * group + i] : 0;
    float4 sum = {};
#pragma unroll 16
    for (int task = part; task < tasks; task += parts) {
      const float4 value = __ldcg(partials + task * groups + group);
      sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
    }
#pragma unroll
    for (int g = 0; g < kPaths; ++g) {
      dot[g] = fmaf(sum.x, weight[g][0], dot[g]), dot[g] = fmaf(sum.y, weight[g][1], dot[g]);
      dot[g] = fmaf(sum.z, weight[g][2], dot[g]), dot[g] = fmaf(sum.w, weight[g][3], dot[g]);
    }
  }
#pragma unroll
  for (int g = 0; g < kPaths; ++g) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) dot[g] += __shfl_xor_sync(~0u, dot[g], lanes);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32 * kPaths + g] = dot[g];
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  static_assert(kThreads == 128, "four warps' sums");
  const bool is = threadIdx.x < gates;
  float value = -INFINITY;
  if (is) {
    const float* sums = scratch + threadIdx.x;
    value = ((sums[0] + sums[kPaths]) + (sums[2 * kPaths] + sums[3 * kPaths])) / float(of.pixels()) + bias;
  }
  const auto of_gate = [&](int g) { return __shfl_sync(~0u, value, g); };
  const Activation activation = Activation(which);
  if (activation == Activation::kTanh) {
    value = relu(tanhf(value));
  } else if (activation == Activation::kSigmoid) {
    value = 1 / (1 + expf(-value));
  } else {
    value = expf(value - fmaxf(of_gate(0), fmaxf(of_gate(1), of_gate(2))));
    value /= of_gate(0) + of_gate(1) + of_gate(2);
  }
  if (is) write(threadIdx.x, value);
}

}  // namespace dynroute::cuda
