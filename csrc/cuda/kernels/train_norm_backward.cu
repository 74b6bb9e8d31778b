// train_norm_backward: BatchNorm's backward from the sums that runs of pixels left, for up to two: gradients of gamma
// and beta, and what the gradient of the raw output is made with.
//
// Work: a block has 8 channels, and each of its 32 rows of threads every 32nd run; all is added up in double, in order.
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

struct NormSums {
  double first, second;  // of the gradient, of its product with the normalised output
};

__device__ inline void norm_channels(const TrainNormBackwardJob& job, const TrainNormBackwardParams& p, int block,
                                     NormSums* shared) {
  const int channel = block * kNormChannels + threadIdx.x % kNormChannels, row = threadIdx.x / kNormChannels;
  const int listed = samples_of(job.samples, p.n);
  NormSums own = {}, all = {};
  double pixels = double(listed) * job.pixels;
  if (channel < job.c && job.partials)
    for (int run = row; run < listed * job.runs; run += kTrainThreads / kNormChannels) {
      const float* const from = job.partials + (int64_t(run) * job.rows + job.row) * job.c + channel;
      own.first += double(from[0]), own.second += double(from[job.c]);
    }
  shared[threadIdx.x] = own;
  __syncthreads();
  if (row > 0 || channel >= job.c) return;
  own = {};
  for (int i = 0; i < kTrainThreads / kNormChannels; ++i) {
    const NormSums& more = shared[i * kNormChannels + threadIdx.x];
    own.first += more.first, own.second += more.second;
  }
  all = own;
  if (job.everyone) {
    all = {}, pixels = 0;
    for (int process = 0; process < p.processes; ++process) {
      const double* const of = job.everyone + int64_t(process) * p.stride;
      pixels += of[0], all.first += of[1 + channel], all.second += of[1 + job.c + channel];
    }
  } else if (job.mine) {
    if (channel == 0) job.mine[0] = pixels;
    job.mine[1 + channel] = own.first, job.mine[1 + job.c + channel] = own.second;
    return;
  }
  const double count = fmax(pixels, 1.0), invstd = double(job.invstd[channel]),
               gain = double(job.gamma[channel]) * invstd;
  job.grad_gamma[channel] = float(own.second), job.grad_beta[channel] = float(own.first);
  job.gain[channel] = float(gain);
  job.slope[channel] = job.frozen ? 0 : float(-gain * invstd * all.second / count);
  job.mean_grad[channel] = job.frozen ? 0 : float(all.first / count);
}

template <class T>
__device__ inline void train_norm_backward(const TrainNormBackwardParams& p) {
  __shared__ NormSums shared[kTrainThreads];
  int at = blockIdx.x;
#pragma unroll
  for (const TrainNormBackwardJob& job : p.job) {
    const int blocks = job.gain ? ceil_div(job.c, kNormChannels) : 0;
    if (at >= 0 && at < blocks) norm_channels(job, p, at, shared);
    at -= blocks;
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_norm_backward, TrainNormBackwardParams, kTrainThreads)
