// train_gate_end: the end of the gate in training: a sample's means from the runs' sums, logits, alphas.
//
// Work: a sample to a block. A lane has every 32nd sum, a warp every 8th run of it; added up in double, in order.
// Logits by warps, a lane's channels first.
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void train_gate_end(const TrainGateEndParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  float* const means = reinterpret_cast<float*>(memory);  // [c]
  __shared__ double logits[kPaths];
  constexpr int kWarps = kTrainThreads / 32;
  __shared__ double parts[kWarps][32];
  const int sample = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, all = kPoolSums * p.c;
  for (int first = 0; first < all; first += 32) {
    const int i = first + lane;
    const float* const from = p.partials + int64_t(sample) * p.runs * all + min(i, all - 1);
    double sum = 0;
#pragma unroll 8
    for (int run = warp; run < p.runs; run += kWarps) sum += double(from[int64_t(run) * all]);
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && i < all) {
      sum = 0;
#pragma unroll
      for (int k = 0; k < kWarps; ++k) sum += parts[k][lane];
      const bool pooled = i < p.c;
      const float value = float(pooled ? sum / p.pixels : sum);
      p.pool[int64_t(sample) * all + i] = value;
      if (pooled) means[i] = value;
    }
    __syncthreads();
  }
  const int g = warp;
  if (g < p.gates) {
    double sum = 0;
    for (int c = lane; c < p.c; c += 32) sum += double(means[c]) * double(p.fc_weight[g * p.c + c]);
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (lane == 0) logits[g] = sum + double(p.fc_bias[g]);
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  float* const out = p.alphas + sample * kPaths;
#pragma unroll
  for (int path = 0; path < kPaths; ++path) out[path] = 0;
  float value[kPaths] = {}, largest = float(logits[0]), total = 0;
  const Activation activation = Activation(p.activation);
#pragma unroll
  for (int i = 0; i < kPaths; ++i)
    if (i < p.gates) value[i] = float(logits[i]), largest = fmaxf(largest, value[i]);
#pragma unroll
  for (int i = 0; i < kPaths; ++i) {
    if (activation == Activation::kTanh) value[i] = fmaxf(0, tanhf(value[i]));
    else if (activation == Activation::kSigmoid) value[i] = 1 / (1 + expf(-value[i]));
    else value[i] = expf(value[i] - largest), total += i < p.gates ? value[i] : 0;
  }
#pragma unroll
  for (int i = 0; i < kPaths; ++i)
    if (i < p.gates) out[p.columns[i]] = activation == Activation::kSoftmax ? value[i] / total : value[i];
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_gate_end, TrainGateEndParams, kTrainThreads)
