// What train_norm and train_norm_backward have in common: a block has 4 channels of one of up to two BatchNorms, and
// each of its 64 rows of threads every 64th of the parts that other kernels left.
#pragma once
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

constexpr int kNormRows = kTrainThreads / kNormChannels;

// Calls each(job, channel, row) for the job, of those with channels, that has this block.
template <class Job, class Each>
__device__ inline void for_norm(const Job (&jobs)[2], Each&& each) {
  int at = blockIdx.x;
#pragma unroll
  for (const Job& job : jobs) {
    const int blocks = ceil_div(job.c, kNormChannels);
    if (at >= 0 && at < blocks)
      each(job, at * kNormChannels + threadIdx.x % kNormChannels, threadIdx.x / kNormChannels);
    at -= blocks;
  }
}

// The sums over all rows of two values, in every thread. By the whole block, once.
__device__ inline void sum_rows(double (&sum)[2]) {
  constexpr int kWarps = kTrainThreads / 32;
  __shared__ double shared[2][kWarps][kNormChannels];
#pragma unroll
  for (int q = 0; q < 2; ++q) {
#pragma unroll
    for (int lanes = 16; lanes >= kNormChannels; lanes /= 2) sum[q] += __shfl_xor_sync(~0u, sum[q], lanes);
    if (threadIdx.x % 32 < kNormChannels) shared[q][threadIdx.x / 32][threadIdx.x % 32] = sum[q];
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    sum[q] = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum[q] += shared[q][warp][threadIdx.x % kNormChannels];
  }
}

}  // namespace dynroute::cuda
