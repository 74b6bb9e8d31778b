// train_hidden: the gradient of what H's ReLU read, out of keep's and both paths', with sums for the cell's last
// BatchNorm and for the alphas; and of samples that do not take part, whose keep is x alone, x's gradient.
//
// Work: runs of a sample's pixels times 64 channels, as train_sums. H is made again. Memory: the maps that H is made of
// and the gradients once each.
#include "train_columns.cuh"
#include "train_source.cuh"

namespace dynroute::cuda {

// Adds `weight` times a group at `from`, if there is one.
template <class T>
__device__ inline void add_group(const T* from, float weight, float (&to)[kVector<T>]) {
  if (!from) return;
  float values[kVector<T>];
  unpack<T>(load_map(from), values);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) to[i] = fmaf(weight, values[i], to[i]);
}

template <class T>
__device__ inline void hidden_run(const TrainHiddenParams& p, const Run& at, float* scratch) {
  constexpr int V = kVector<T>, kAcross = kRunChannels / V;
  const int sample = sample_of(p.samples, at.listed), w = p.hidden.w, c = p.hidden.c, pixels = p.hidden.h * w;
  const int channel = at.chunk * kRunChannels + threadIdx.x % kAcross * V, small_w = ceil_div(w, 2);
  const int64_t first = int64_t(sample) * pixels * c + channel;
  const int64_t small = int64_t(sample) * ceil_div(p.hidden.h, 2) * small_w * c + channel;
  const auto map = [&](const void* of, int64_t from) { return of ? static_cast<const T*>(of) + from : nullptr; };
  const T *const keep = map(p.grad_keep, first), *const x = map(p.hidden.map, first),
                 *const raws = map(p.hidden.raw, first);
  const T* const up = is_taken(p.up_taken, sample) ? map(p.of_up, first) : nullptr;
  const T* const down = is_taken(p.down_taken, sample) ? map(p.of_down, small) : nullptr;
  const float keep_weight = p.hidden_weight[sample], factor = p.hidden.factor ? p.hidden.factor[sample] : 1;
  float sums[2][V] = {}, of_hidden = 0, of_x = 0;
  if (channel < c)
#pragma unroll 1
    for (int pixel = at.begin + threadIdx.x / kAcross; pixel < at.end; pixel += kTrainThreads / kAcross) {
      const int from = pixel * c, row = pixel / p.w, column = pixel - row * w;
      float grad[V] = {}, read[V], raw[V], values[V];
      unpack<T>(load_map(x + from), read), unpack<T>(load_map(raws + from), raw);
#pragma unroll
      for (int i = 0; i < V; i += 4) {  // H, as a source has it
        float scale[4], shift[4];
        load_floats(p.hidden.scale + channel + i, scale), load_floats(p.hidden.shift + channel + i, shift);
#pragma unroll
        for (int k = 0; k < 4; ++k) values[i + k] = fmaf(factor, fmaf(scale[k], raw[i + k], shift[k]), read[i + k]);
      }
      unpack<T>(pack_relu<T>(values), values);
      if (keep) {
        float kept[V];
        unpack<T>(load_map(keep + from), kept);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          of_hidden = fmaf(kept[i], values[i], of_hidden), of_x = fmaf(kept[i], read[i], of_x);
          grad[i] = keep_weight * kept[i];
        }
      }
      add_group<T>(up ? up + from : nullptr, 1, grad);
      if (row % 2 == 0 && column % 2 == 0)
        add_group<T>(down ? down + (row / 2 * small_w + column / 2) * c : nullptr, 1, grad);
#pragma unroll
      for (int i = 0; i < V; ++i) grad[i] = values[i] > 0 ? grad[i] : 0;
      const uint4 stored = pack<T>(grad);
      store_global(static_cast<T*>(p.grad_hidden) + first + from, stored);
      unpack<T>(stored, grad);
#pragma unroll
      for (int i = 0; i < V; i += 4) {
        float mean[4], invstd[4];
        load_floats(p.mean + channel + i, mean), load_floats(p.invstd + channel + i, invstd);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float g = factor * grad[i + k];
          sums[0][i + k] += g;
          sums[1][i + k] = fmaf(g, (raw[i + k] - mean[k]) * invstd[k], sums[1][i + k]);
        }
      }
    }
  const int runs = train_runs(pixels);
  float* const to = p.partials + (int64_t(at.listed) * runs + at.run) * 2 * c + at.chunk * kRunChannels;
  block_columns(sums, scratch, [&](int row, int of, float sum) {
    if (at.chunk * kRunChannels + of < c) to[row * c + of] = sum;
  });
  of_hidden = block_total(of_hidden, scratch), of_x = block_total(of_x, scratch);
  float* const dots = p.dots + ((int64_t(sample) * runs + at.run) * train_chunks(c) + at.chunk) * 2;
  if (threadIdx.x == 0) dots[0] = of_hidden, dots[1] = of_x;
}

// A run of a sample that does not take part.
template <class T>
__device__ inline void closed_run(const TrainHiddenParams& p, int sample, const Run& at, float* scratch) {
  constexpr int V = kVector<T>, kAcross = kRunChannels / V;
  const int c = p.hidden.c, pixels = p.hidden.h * p.hidden.w;
  const int channel = at.chunk * kRunChannels + threadIdx.x % kAcross * V;
  const int64_t first = int64_t(sample) * pixels * c + channel;
  const float weight = p.x_weight[sample];
  float of_x = 0;
  if (channel < c)
    for (int pixel = at.begin + threadIdx.x / kAcross; pixel < at.end; pixel += kTrainThreads / kAcross) {
      float kept[V] = {}, read[V];
      if (p.grad_keep) unpack<T>(load_map(static_cast<const T*>(p.grad_keep) + first + pixel * c), kept);
      if (p.closed_dots) {
        unpack<T>(load_map(static_cast<const T*>(p.hidden.map) + first + pixel * c), read);
#pragma unroll
        for (int i = 0; i < V; ++i) of_x = fmaf(kept[i], read[i], of_x);
      }
#pragma unroll
      for (float& value : kept) value *= weight;
      if (p.grad_x) store_global(static_cast<T*>(p.grad_x) + first + pixel * c, pack<T>(kept));
    }
  of_x = block_total(of_x, scratch);
  float* const dots = p.dots + ((int64_t(sample) * train_runs(pixels) + at.run) * train_chunks(c) + at.chunk) * 2;
  if (threadIdx.x == 0) dots[0] = 0, dots[1] = of_x;
}

template <class T>
__device__ inline void train_hidden(const TrainHiddenParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  float* const scratch = reinterpret_cast<float*>(memory);
  const int listed = samples_of(p.samples, p.n), pixels = p.hidden.h * p.hidden.w;
  for (int64_t number = blockIdx.x;; number += gridDim.x) {
    int64_t at = number;
    Run run;
    if (find_run(listed, pixels, p.hidden.c, at, run)) {
      hidden_run<T>(p, run, scratch);
      continue;
    }
    if (!find_run(p.n - listed, pixels, p.hidden.c, at, run)) return;
    int sample = 0;  // the run.listed-th of those that are not listed
    for (int others = run.listed; is_taken(p.samples.taken, sample) || others-- > 0;) ++sample;
    closed_run<T>(p, sample, run, scratch);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_hidden, TrainHiddenParams, kTrainThreads, kTrainResident)
