// train_gate_end: the end of the gate in training: a sample's means from the runs' sums, logits, alphas.
//
// Work: a sample to a block. A lane has every 32nd sum of a run; where sums are few, several warps share the runs.
// Added up in double, in order. Logits by warps, a lane's channels first.
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void train_gate_end(const TrainGateEndParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  double* const parts = reinterpret_cast<double*>(memory);  // [groups][shares][32]
  __shared__ double logits[kPaths];
  constexpr int kWarps = kTrainThreads / 32;
  const int sample = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, all = kPoolSums * p.c;
  const int shares = pool_shares(p.c);
  float* const pool = p.pool + int64_t(sample) * all;
  for (int task = warp; task < pool_groups(p.c) * shares; task += kWarps) {
    const float* const from = p.partials + int64_t(sample) * p.runs * all + min(task / shares * 32 + lane, all - 1);
    double sum = 0;
#pragma unroll 8
    for (int run = task % shares; run < p.runs; run += shares) sum += double(from[int64_t(run) * all]);
    parts[task * 32 + lane] = sum;
  }
  __syncthreads();
  const auto summed = [&](int i) {
    double sum = 0;
    for (int share = 0; share < shares; ++share) sum += parts[(i / 32 * shares + share) * 32 + i % 32];
    return float(i < p.c ? sum / p.pixels : sum);
  };
  for (int i = threadIdx.x; i < all; i += kTrainThreads) pool[i] = summed(i);
  const int g = warp;
  if (g < p.gates) {
    double sum = 0;
    for (int c = lane; c < p.c; c += 32) sum += double(summed(c)) * double(p.fc_weight[g * p.c + c]);
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
    if (activation == Activation::kTanh) value[i] = relu(tanhf(value[i]));
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
