// train_alphas: the gradients of a node's alphas, from the dot products that runs of pixels left.
//
// Work: a sample to a block; its threads' sums, in double, are added up in order.
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

__device__ inline double sum_parts(const float* from, int parts, int stride, double* shared) {
  double sum = 0;
  for (int i = threadIdx.x; i < parts; i += kTrainThreads) sum += double(from[int64_t(i) * stride]);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int warp = 0; warp < kTrainThreads / 32; ++warp) sum += shared[warp];
  return sum;
}

template <class T>
__device__ inline void train_alphas(const TrainAlphasParams& p) {
  __shared__ double shared[kTrainThreads / 32];
  const int sample = blockIdx.x;
  double up = 0, down = 0, keep = 0, of_x = 0;
  if (p.up_dots && is_taken(p.up_taken, sample))
    up = sum_parts(p.up_dots + int64_t(sample) * p.up_parts, p.up_parts, 1, shared);
  if (p.down_dots && is_taken(p.down_taken, sample))
    down = sum_parts(p.down_dots + int64_t(sample) * p.down_parts, p.down_parts, 1, shared);
  if (p.dots) {
    const float* const from = p.dots + int64_t(sample) * p.parts * 2;
    keep = sum_parts(from, p.parts, 2, shared), of_x = sum_parts(from + 1, p.parts, 2, shared);
  }
  if (threadIdx.x > 0) return;
  const float x_weight = p.x_weight[sample];
  if (p.bridge == 0 && x_weight != 0) keep = 0;  // a closed sample's keep is x
  const double passed = p.bridge > 0 && x_weight > 0 ? of_x / double(p.bridge) : 0;
  float* const out = p.grad_alphas + sample * kPaths;
  out[kUp] = float(up - passed), out[kKeep] = float(keep - passed), out[kDown] = float(down - passed);
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_alphas, TrainAlphasParams, kTrainThreads)
