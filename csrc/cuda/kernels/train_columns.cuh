// Sums over pixels by channel, in a block of kTrainThreads: of a product's results, and of threads that walk over
// pixels.
#pragma once
#include "gemm.cuh"
#include "train_shapes.h"

namespace dynroute::cuda {

// sums[q][j]: over all of a tile's pixels the values of a thread's j-th column; value(q, i, j) is that of its i-th
// pixel. Lanes that share columns halve them between each other: 8 columns take 4 + 2 + 1 shuffles. By the whole block.
template <int Q, class Tile, class Value>
__device__ inline void tile_columns(Value&& value, float* totals /* [Q][kWarpRows][BN] */,
                                    float (&sums)[Q][Tile::kColumns], int thread) {
  constexpr int kKept = Tile::kCores ? Tile::kColumns / 2 : 1, kTotals = Tile::kWarpRows * Tile::BN;
  static_assert(Tile::kFirstLane == 16 || Tile::kColumns == 8);
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    float column[Tile::kColumns];
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) {
      column[j] = 0;
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i) column[j] += value(q, i, j);
    }
    int first = 0, kept = Tile::kColumns;  // of the columns that this lane keeps
#pragma unroll
    for (int lanes = 16; lanes >= Tile::kFirstLane; lanes /= 2) {
      kept /= 2;
      const bool upper = thread & lanes;
      first += upper ? kept : 0;
#pragma unroll
      for (int i = 0; i < Tile::kColumns / 2; ++i) {
        if (i >= kept) break;
        const float give = upper ? column[i] : column[i + kept], keep = upper ? column[i + kept] : column[i];
        column[i] = keep + __shfl_xor_sync(~0u, give, lanes);
      }
    }
#pragma unroll
    for (int i = 0; i < kKept; ++i)
      totals[q * kTotals + Tile::warp_row(thread) * Tile::BN + Tile::column(first + i, thread)] = column[i];
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q < Q; ++q)
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) {
      sums[q][j] = 0;
#pragma unroll
      for (int row = 0; row < Tile::kWarpRows; ++row)
        sums[q][j] += totals[q * kTotals + row * Tile::BN + Tile::column(j, thread)];
    }
}

// Threads that walk over pixels of kRunChannels channels, V of them each, neighbours first: the sums over the block of
// Q quantities by channel. write(quantity, channel, sum), of channels counted from the chunk's first.
template <int Q, int V, class Write>
__device__ inline void block_columns(float (&sum)[Q][V], float* scratch /* [Q][8][kRunChannels] */, Write&& write) {
  constexpr int kAcross = kRunChannels / V, kWarps = kTrainThreads / 32;
  __syncthreads();  // what was here has been read
#pragma unroll
  for (int q = 0; q < Q; ++q) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
#pragma unroll
      for (int lanes = 16; lanes >= kAcross; lanes /= 2) sum[q][i] += __shfl_xor_sync(~0u, sum[q][i], lanes);
    }
    if (threadIdx.x % 32 < kAcross)
#pragma unroll
      for (int i = 0; i < V; i += 4)
        *reinterpret_cast<float4*>(scratch + (q * kWarps + threadIdx.x / 32) * kRunChannels + threadIdx.x % 32 * V +
                                   i) = {sum[q][i], sum[q][i + 1], sum[q][i + 2], sum[q][i + 3]};
  }
  __syncthreads();
  for (int at = threadIdx.x; at < Q * kRunChannels; at += kTrainThreads) {
    const int q = at / kRunChannels, channel = at % kRunChannels;
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += scratch[(q * kWarps + warp) * kRunChannels + channel];
    write(q, channel, total);
  }
}

// The sum over the block of each thread's value, in all threads.
__device__ inline float block_total(float value, float* scratch /* [8] */) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int warp = 0; warp < kTrainThreads / 32; ++warp) total += scratch[warp];
  return total;
}

// A run of a sample's pixels and a chunk of its channels, of a kernel that walks over those of up to a few maps.
struct Run {
  int listed, run, chunk;
  int begin, end;  // pixels
};
// Run number `at` of a map; false, and `at` less the map's, where it has no such.
__device__ inline bool find_run(int listed, int pixels, int c, int64_t& at, Run& found) {
  const int runs = train_runs(pixels), chunks = train_chunks(c);
  const int64_t here = int64_t(listed) * runs * chunks;
  if (at >= here) {
    at -= here;
    return false;
  }
  found.chunk = int(at % chunks), found.run = int(at / chunks % runs), found.listed = int(at / chunks / runs);
  found.begin = found.run * kRunPixels, found.end = min(found.begin + kRunPixels, pixels);
  return true;
}

// Calls each(job, run) for this block's runs of up to Jobs maps; listed(job): how many samples of one, 0 where there is
// no job.
template <class Job, int Jobs, class Listed, class Each>
__device__ inline void for_runs(const Job (&jobs)[Jobs], Listed&& listed, Each&& each) {
  for (int64_t number = blockIdx.x;; number += gridDim.x) {
    int64_t at = number;
    Run run;
    bool is = false;
#pragma unroll
    for (const Job& job : jobs) {
      if (is || !find_run(listed(job), job.pixels, job.c, at, run)) continue;
      is = true;
      each(job, run);
    }
    if (!is) return;
  }
}

}  // namespace dynroute::cuda
