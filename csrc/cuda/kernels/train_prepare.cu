// train_prepare: what a training operator's kernels want of a call's own tensors, before them: weights in the kernels'
// layouts, in T, from the float ones that an optimiser keeps; taps; what BatchNorms amount to; the lists of samples,
// out of a mask or out of the alphas, and what these weigh.
//
// Work: each value by one thread; lists by the first block's first warp, in order.
#include "contract/routing.h"
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void pack_matrix(const TrainMatrix& from, int thread, int threads) {
  const Matrix& to = from.to;
  T* const weight = static_cast<T*>(const_cast<void*>(to.weight));
  const int in_row = kIsFloat<T> ? to.n_pad : to.k_pad;                 // a matrix has fewer than 2^31 values
  const int rows_on = threads / in_row, columns_on = threads % in_row;  // to a thread's next value
  for (int row = thread / in_row, column = thread % in_row, i = thread; i < to.n_pad * to.k_pad; i += threads) {
    const int n = kIsFloat<T> ? column : row, k = kIsFloat<T> ? row : column;
    float value = 0;
    if (n < to.n && k < to.k) value = from.weight[from.transposed ? k * to.n + n : n * to.k + k];
    weight[i] = T(value);
    row += rows_on, column += columns_on;
    if (column >= in_row) column -= in_row, ++row;
  }
  for (int n = thread; n < to.n_pad; n += threads) const_cast<float*>(to.shift)[n] = 0;
}

// Appends a listed sample, with its flag; by one warp.
__device__ inline void list_sample(const TrainSamples& to, int& count, bool is, int sample, int n) {
  if (!to.taken) return;
  append(to.list.samples, count, is && sample < n, sample);
  if (sample < n) to.taken[sample] = is;
  if (threadIdx.x == 0) *to.list.count = count;
}

__device__ inline void list_samples(const TrainPrepareParams& p) {
  const TrainShares& shares = p.shares;
  int open_count = 0, up_count = 0, down_count = 0;
  for (int first = 0; first < p.n; first += 32) {
    const int sample = first + int(threadIdx.x);
    const bool is = sample < p.n;
    if (!shares.alphas) {
      list_sample(p.open, open_count, is && p.mask[sample], sample, p.n);
      continue;
    }
    float alphas[kPaths];
#pragma unroll
    for (int path = 0; path < kPaths; ++path) alphas[path] = is ? shares.alphas[sample * kPaths + path] : 0;
    const bool closed = is_closed(alphas), open = is && !(shares.skip && closed);
    const float sum = alphas[kUp] + alphas[kKeep] + alphas[kDown];
    if (is) {
      shares.up[sample] = alphas[kUp], shares.down[sample] = alphas[kDown];
      shares.hidden[sample] = closed && shares.bridge == 0 ? 0 : alphas[kKeep];
      shares.x[sample] = shares.bridge > 0 ? relu(1 - sum / shares.bridge) : float(closed);
    }
    const auto takes = [&](int path) { return open && (!shares.skip || path_is_open(alphas[path])); };
    list_sample(p.open, open_count, open, sample, p.n);
    list_sample(p.up, up_count, shares.has_up && takes(kUp), sample, p.n);
    list_sample(p.down, down_count, shares.has_down && takes(kDown), sample, p.n);
  }
}

template <class T>
__device__ inline void train_prepare(const TrainPrepareParams& p) {
  const int thread = blockIdx.x * kTrainThreads + threadIdx.x, threads = gridDim.x * kTrainThreads;
#pragma unroll
  for (int i = 0; i < kMostConvolutions; ++i) {
    if (p.matrix[i].weight) pack_matrix<T>(p.matrix[i], thread, threads);
    const TrainAffine& affine = p.affine[i];
    if (affine.stats)
      for (int c = thread; c < affine.c; c += threads) {
        affine.scale[c] = affine.gamma[c] * affine.stats[affine.c + c];
        affine.shift[c] = affine.beta[c] - affine.stats[c] * affine.scale[c];
      }
  }
#pragma unroll
  for (const TrainTaps& taps : p.taps)
    if (taps.weight)
      for (int i = thread; i < 9 * taps.c; i += threads) taps.to[i] = taps.weight[i % taps.c * 9 + i / taps.c];
  if (p.cleared)
    for (int sample = 0; sample < p.n; ++sample)
      for (int64_t i = thread; i < p.cleared_size / kVector<T> && !p.mask[sample]; i += threads)
        store_global(static_cast<T*>(p.cleared) + sample * p.cleared_size + i * kVector<T>, uint4{});
  if (blockIdx.x == 0 && threadIdx.x < 32 && (p.shares.alphas || p.mask)) list_samples(p);
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_prepare, TrainPrepareParams, kTrainThreads)
