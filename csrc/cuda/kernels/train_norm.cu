// train_norm: a BatchNorm's statistics from what a product's tiles left, and what it amounts to, for up to two.
//
// Work: as train_norms.cuh. A tile left sums of distances from a pivot of its own; in double they become sums of
// distances from the first tile's pivot, which is one of the channel's values: so they are plain sums, that nothing
// has to be divided for and many loads can be on their way for, and lose nothing when the mean is taken off. The order
// depends on the shape alone. Processes' moments are merged in order (Chan, Golub, LeVeque 1983).
#include "train_norms.cuh"

namespace dynroute::cuda {

// Pixels, their mean, and the sum of squared distances from it.
struct Moments {
  double count, mean, squares;
  __device__ void merge(const Moments& more) {
    if (more.count == 0) return;
    const double total = count + more.count, apart = more.mean - mean;
    squares += more.squares + apart * apart * count * (more.count / total);
    mean += apart * (more.count / total);
    count = total;
  }
};

// Of all listed tiles, in every thread of the channel; by the whole block.
template <class T>
__device__ inline Moments of_tiles(const TrainNormJob& job, int n, int channel, int row) {
  const int listed = samples_of(job.samples, n), all = listed * job.tiles;
  const float* const partials = job.partials + min(channel, job.c - 1);
  const double pivot = all > 0 ? double(partials[0]) : 0;
  double sum[2] = {};
#pragma unroll 8
  for (int tile = row; tile < all; tile += kNormRows) {
    const int inside = tile % job.tiles, row_of_tiles = inside / job.across;
    const int y = row_of_tiles * sepconv_high(sizeof(T)), x = (inside - row_of_tiles * job.across) * kSepconvWide;
    const float* const from = partials + int64_t(tile) * kTileSums * job.c;
    const double pixels = double(min(kSepconvWide, job.w - x) * min(sepconv_high(sizeof(T)), job.h - y));
    const double off = double(from[0]) - pivot, apart = double(from[job.c]);
    sum[0] += apart + pixels * off;
    sum[1] += double(from[2 * job.c]) + off * (2 * apart + pixels * off);
  }
  sum_rows(sum);
  const double pixels = double(listed) * job.h * job.w, off = pixels > 0 ? sum[0] / pixels : 0;
  return {pixels, pivot + off, sum[1] - off * sum[0]};
}

template <class T>
__device__ inline void norm_channels(const TrainNormJob& job, const TrainNormParams& p, int channel, int row) {
  Moments found = {};
  if (!job.frozen && !job.everyone) found = of_tiles<T>(job, p.n, channel, row);
  if (row > 0 || channel >= job.c) return;
  if (job.everyone && !job.frozen)
    for (int process = 0; process < p.processes; ++process) {
      const double* const of = job.everyone + int64_t(process) * p.stride;
      found.merge({of[0], of[1 + channel], of[1 + job.c + channel]});
    }
  if (job.mine && !job.everyone) {
    if (channel == 0) job.mine[0] = found.count;
    job.mine[1 + channel] = found.mean, job.mine[1 + job.c + channel] = found.squares;
    return;
  }
  const bool of_batch = found.count > 0;
  const float mean = of_batch ? float(found.mean) : job.running_mean[channel];
  const double squares = fmax(found.squares, 0.0);
  const double variance = of_batch ? squares / found.count : double(job.running_var[channel]);
  const float invstd = float(1 / sqrt(variance + double(p.eps))), scale = job.gamma[channel] * invstd;
  job.stats[channel] = mean, job.stats[job.c + channel] = invstd;
  job.stats[2 * job.c + channel] = of_batch ? float(squares / fmax(found.count - 1, 1.0)) : job.running_var[channel];
  job.scale[channel] = scale, job.shift[channel] = job.beta[channel] - mean * scale;
}

template <class T>
__device__ inline void train_norm(const TrainNormParams& p) {
  for_norm(p.job, [&](const TrainNormJob& job, int channel, int row) { norm_channels<T>(job, p, channel, row); });
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_norm, TrainNormParams, kTrainThreads)
