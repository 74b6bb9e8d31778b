// train_gate_end: the end of the gate in training: a sample's means from the runs' sums, logits, alphas.
//
// Work: a sample to a block. Sums are added up in double, in order; logits by warps, a lane's channels first.
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void train_gate_end(const TrainGateEndParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  float* const means = reinterpret_cast<float*>(memory);  // [c]
  __shared__ double logits[kPaths];
  const int sample = blockIdx.x;
  for (int i = threadIdx.x; i < kPoolSums * p.c; i += kTrainThreads) {
    const float* from = p.partials + int64_t(sample) * p.runs * kPoolSums * p.c + i;
    double sum = 0;
    for (int run = 0; run < p.runs; ++run, from += kPoolSums * p.c) sum += double(*from);
    const bool pooled = i < p.c;
    const float value = float(pooled ? sum / p.pixels : sum);
    p.pool[int64_t(sample) * kPoolSums * p.c + i] = value;
    if (pooled) means[i] = value;
  }
  __syncthreads();
  const int g = threadIdx.x / 32, lane = threadIdx.x % 32;
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
