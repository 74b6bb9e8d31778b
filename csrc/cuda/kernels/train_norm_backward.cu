// train_norm_backward: BatchNorm's backward from the sums that runs of pixels left, for up to two: gradients of gamma
// and beta, and what the gradient of the raw output is made with.
//
// Work: as train_norms.cuh; all is added up in double, in an order that depends on the shape alone.
#include "train_norms.cuh"

namespace dynroute::cuda {

__device__ inline void norm_channels(const TrainNormBackwardJob& job, const TrainNormBackwardParams& p, int channel,
                                     int row) {
  const int listed = samples_of(job.samples, p.n);
  double pixels = double(listed) * job.pixels;
  double sum[2] = {};  // of the gradient, of its product with the normalised output
  if (job.partials) {
    const float* const partials = job.partials + int64_t(job.row) * job.c + min(channel, job.c - 1);
#pragma unroll 8
    for (int run = row; run < listed * job.runs; run += kNormRows) {
      const float* const from = partials + int64_t(run) * job.rows * job.c;
      sum[0] += double(from[0]), sum[1] += double(from[job.c]);
    }
  }
  sum_rows(sum);
  if (row > 0 || channel >= job.c) return;
  double first = sum[0], second = sum[1];  // all processes'
  if (job.everyone) {
    first = second = pixels = 0;
    for (int process = 0; process < p.processes; ++process) {
      const double* const of = job.everyone + int64_t(process) * p.stride;
      pixels += of[0], first += of[1 + channel], second += of[1 + job.c + channel];
    }
  } else if (job.mine) {
    if (channel == 0) job.mine[0] = pixels;
    job.mine[1 + channel] = first, job.mine[1 + job.c + channel] = second;
    return;
  }
  const double share = 1 / fmax(pixels, 1.0), invstd = double(job.invstd[channel]),
               gain = double(job.gamma[channel]) * invstd;
  job.grad_gamma[channel] = float(sum[1]), job.grad_beta[channel] = float(sum[0]);
  job.gain[channel] = float(gain);
  job.slope[channel] = job.frozen ? 0 : float(-gain * invstd * second * share);
  job.mean_grad[channel] = job.frozen ? 0 : float(first * share);
}

template <class T>
__device__ inline void train_norm_backward(const TrainNormBackwardParams& p) {
  for_norm(p.job, [&](const TrainNormBackwardJob& job, int channel, int row) { norm_channels(job, p, channel, row); });
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_norm_backward, TrainNormBackwardParams, kTrainThreads)
