// train_norm: a BatchNorm's statistics from what a product's tiles left, and what it amounts to, for up to two.
//
// Work: a block has 8 channels, and each of its 32 rows of threads every 32nd tile; rows are merged in order. All in
// double (Chan, Golub, LeVeque 1983): so the order, which depends on the shape alone, is all that the bits depend on.
#include "train_shapes.h"
#include "train_source.cuh"

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

template <class T>
__device__ inline Moments of_tiles(const TrainNormJob& job, int n, int channel, int row) {
  Moments found = {};
  const int all = samples_of(job.samples, n) * job.tiles;
  for (int tile = row; tile < all; tile += kTrainThreads / kNormChannels) {
    const int inside = tile % job.tiles, row_of_tiles = inside / job.across;
    const int y = row_of_tiles * sepconv_high(sizeof(T)), x = (inside - row_of_tiles * job.across) * kSepconvWide;
    const float* const from = job.partials + int64_t(tile) * kTileSums * job.c + channel;
    const double pixels = double(min(kSepconvWide, job.w - x) * min(sepconv_high(sizeof(T)), job.h - y));
    const double off = double(from[job.c]) / pixels;  // the mean, from the pivot
    found.merge({pixels, double(from[0]) + off, double(from[2 * job.c]) - off * off * pixels});
  }
  return found;
}

template <class T>
__device__ inline void norm_channels(const TrainNormJob& job, const TrainNormParams& p, int block, Moments* shared) {
  const int channel = block * kNormChannels + threadIdx.x % kNormChannels, row = threadIdx.x / kNormChannels;
  Moments found = {};
  if (!job.frozen) {
    if (job.everyone) {
      for (int process = 0; process < p.processes; ++process) {
        const double* const of = job.everyone + int64_t(process) * p.stride;
        found.merge({of[0], of[1 + channel], of[1 + job.c + channel]});
      }
    } else {
      shared[threadIdx.x] = channel < job.c ? of_tiles<T>(job, p.n, channel, row) : Moments{};
      __syncthreads();
      if (row == 0)
        for (int i = 0; i < kTrainThreads / kNormChannels; ++i) found.merge(shared[i * kNormChannels + threadIdx.x]);
    }
  }
  if (row > 0 || channel >= job.c) return;
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
  __shared__ Moments shared[kTrainThreads];
  int at = blockIdx.x;
#pragma unroll
  for (const TrainNormJob& job : p.job) {
    const int blocks = job.stats ? ceil_div(job.c, kNormChannels) : 0;
    if (at >= 0 && at < blocks) norm_channels<T>(job, p, at, shared);
    at -= blocks;
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_norm, TrainNormParams, kTrainThreads)
