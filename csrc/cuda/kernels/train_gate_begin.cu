// train_gate_begin: the beginning of the gate's backward: from the alphas' gradients to those of the logits, of the 1x1
// behind the mean, of every pixel that the ReLU lets through, and to the sums that BatchNorm's backward wants, which
// the forward's pool has.
//
// Work: 32 channels to a block, and to each of its 8 warps every 8th sample; what they find of the weights' gradients
// is added up in order; in double.
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

// Of a sample's logits.
__device__ inline void grad_of_logits(const TrainGateBeginParams& p, int sample, double (&out)[kPaths]) {
  double alpha[kPaths] = {}, grad[kPaths] = {}, along = 0;
#pragma unroll
  for (int g = 0; g < kPaths; ++g) {
    if (g >= p.gates) continue;
    alpha[g] = double(p.alphas[sample * kPaths + p.columns[g]]),
    grad[g] = double(p.grad[sample * kPaths + p.columns[g]]);
    along += alpha[g] * grad[g];  // softmax's sum is one whatever the logits are
  }
  const Activation activation = Activation(p.activation);
#pragma unroll
  for (int g = 0; g < kPaths; ++g) {
    const double a = alpha[g];
    if (activation == Activation::kTanh) out[g] = a > 0 ? grad[g] * (1 - a * a) : 0;
    else if (activation == Activation::kSigmoid) out[g] = grad[g] * a * (1 - a);
    else out[g] = a * (grad[g] - along);
  }
}

template <class T>
__device__ inline void train_gate_begin(const TrainGateBeginParams& p) {
  constexpr int kWarps = kTrainThreads / 32;
  static_assert(kBeginChannels == 32, "a lane has a channel");
  __shared__ double of_fc[kWarps][kPaths][32], of_bias[kWarps][kPaths];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = p.c, channel = blockIdx.x * kBeginChannels + lane;
  const int there = min(channel, c - 1);
  double fc[kPaths] = {}, bias[kPaths] = {}, weight[kPaths] = {};
#pragma unroll
  for (int g = 0; g < kPaths; ++g)
    if (g < p.gates) weight[g] = double(p.fc_weight[g * c + there]);
  const double share = 1 / double(p.pixels), invstd = double(p.invstd[there]);
  for (int sample = warp; sample < p.n; sample += kWarps) {
    double of_logits[kPaths], sum = 0;
    grad_of_logits(p, sample, of_logits);
    const float* const pool = p.pool + int64_t(sample) * kPoolSums * c + there;
    const double pooled = double(pool[kPooled * c]), above = double(pool[kAbove * c]), apart = double(pool[kApart * c]);
#pragma unroll
    for (int g = 0; g < kPaths; ++g) {
      if (g >= p.gates) continue;
      bias[g] += of_logits[g], fc[g] += of_logits[g] * pooled, sum += of_logits[g] * weight[g];
    }
    if (channel >= c) continue;
    const float of_pixel = float(sum * share);
    p.of_samples[int64_t(sample) * c + channel] = of_pixel;
    float* const to = p.partials + int64_t(sample) * 2 * c + channel;
    to[0] = float(double(of_pixel) * above), to[c] = float(double(of_pixel) * apart * invstd);
  }
#pragma unroll
  for (int g = 0; g < kPaths; ++g) {
    of_fc[warp][g][lane] = fc[g];
    if (lane == 0) of_bias[warp][g] = bias[g];
  }
  __syncthreads();
  if (warp >= p.gates) return;
  double weights = 0, biases = 0;
#pragma unroll
  for (int k = 0; k < kWarps; ++k) weights += of_fc[k][warp][lane], biases += of_bias[k][warp];
  if (channel < c) p.grad_fc_weight[warp * c + channel] = float(weights);
  if (channel == 0) p.grad_fc_bias[warp] = float(biases);
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_gate_begin, TrainGateBeginParams, kTrainThreads)
