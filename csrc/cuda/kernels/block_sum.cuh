// A sum over a block of kThreads, in a fixed order.
#pragma once
#include "primitives.cuh"

namespace dynroute::cuda {

// The sum over the block of each thread's value, in all threads.
__device__ inline double block_sum(double value, double* scratch /* [kThreads / 32] */) {
  static_assert(kThreads == 128, "adds four warps'");
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  return (scratch[0] + scratch[1]) + (scratch[2] + scratch[3]);
}

}  // namespace dynroute::cuda
