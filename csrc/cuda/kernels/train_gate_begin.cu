// train_gate_begin: the beginning of the gate's backward: from the alphas' gradients to those of the logits, of the 1x1
// behind the mean, of every pixel that the ReLU lets through, and to the sums that BatchNorm's backward wants, which
// the forward's pool has.
//
// Work: a channel to each thread, which goes through all samples in order; the logits' gradients, which all channels
// want, are made before, a sample to each thread; in double.
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
  const int channel = blockIdx.x * kTrainThreads + threadIdx.x, c = p.c;
  const bool is = channel < c;
  __shared__ double logits[kTrainThreads][kPaths];
  double of_fc[kPaths] = {}, of_bias[kPaths] = {};
  for (int first = 0; first < p.n; first += kTrainThreads) {
    __syncthreads();  // those before have been read
    if (first + threadIdx.x < p.n) grad_of_logits(p, first + threadIdx.x, logits[threadIdx.x]);
    __syncthreads();
    if (!is) continue;
#pragma unroll 4
    for (int sample = first; sample < min(first + kTrainThreads, p.n); ++sample) {
      const double (&of_logits)[kPaths] = logits[sample - first];
      const float* const pool = p.pool + int64_t(sample) * kPoolSums * c + channel;
      double sum = 0;
#pragma unroll
      for (int g = 0; g < kPaths; ++g) {
        of_bias[g] += of_logits[g];
        if (g >= p.gates) continue;
        of_fc[g] += of_logits[g] * double(pool[kPooled * c]);
        sum += of_logits[g] * double(p.fc_weight[g * c + channel]);
      }
      const float of_pixel = float(sum / p.pixels);
      p.of_samples[int64_t(sample) * c + channel] = of_pixel;
      float* const to = p.partials + int64_t(sample) * 2 * c + channel;
      to[0] = of_pixel * pool[kAbove * c], to[c] = of_pixel * pool[kApart * c] * p.invstd[channel];
    }
  }
#pragma unroll
  for (int g = 0; g < kPaths; ++g) {
    if (g >= p.gates) continue;
    if (is) p.grad_fc_weight[g * c + channel] = float(of_fc[g]);
    if (channel == 0) p.grad_fc_bias[g] = float(of_bias[g]);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_gate_begin, TrainGateBeginParams, kTrainThreads)
