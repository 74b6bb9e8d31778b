// train_apply: what a BatchNorm makes of a raw output, with a ReLU, a residual and a sample's weight, for up to three
// maps: what an operator returns.
//
// Work: runs of a sample's pixels times 64 channels; 16 bytes of a pixel to a thread at a time. Memory: each map once.
#include "train_columns.cuh"
#include "train_source.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void apply_run(const TrainApplyJob& job, int n, const Run& at) {
  constexpr int V = kVector<T>, kAcross = kRunChannels / V;
  const int sample = at.listed, c = job.c, channel = at.chunk * kRunChannels + threadIdx.x % kAcross * V;
  if (channel >= c) return;
  const bool takes_part = is_taken(job.samples.taken, sample);
  const int64_t first = int64_t(sample) * job.pixels * c + channel;
  const float factor = job.factor ? job.factor[sample] : 1, weight = job.weight ? job.weight[sample] : 1;
  const float x_weight = job.x_weight ? job.x_weight[sample] : 0;
  const T *const x = static_cast<const T*>(job.x) + first, *const raws = static_cast<const T*>(job.raw) + first;
  float scale[V], shift[V];
  load_floats(job.scale + channel, scale), load_floats(job.shift + channel, shift);
#pragma unroll
  for (int i = 0; i < V; ++i) scale[i] *= factor, shift[i] *= factor;
  for (int pixel = at.begin + threadIdx.x / kAcross; pixel < at.end; pixel += kTrainThreads / kAcross) {
    float values[V] = {}, read[V] = {};
    if (job.x && (takes_part || x_weight != 0)) unpack<T>(load_map(x + pixel * c), read);
    if (takes_part) {
      unpack<T>(load_map(raws + pixel * c), values);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        values[i] = fmaf(scale[i], values[i], shift[i]) + read[i];
        if (job.relu) values[i] = relu(values[i]);
        values[i] *= weight;
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = fmaf(x_weight, read[i], values[i]);
    store_global(static_cast<T*>(job.out) + first + pixel * c, pack<T>(values));
    if (takes_part || !job.cleared) continue;
    for (int stage = 0; stage < job.stages; ++stage)
      store_global(static_cast<T*>(job.cleared) + int64_t(stage) * n * job.pixels * c + first + pixel * c, uint4{});
  }
}

template <class T>
__device__ inline void train_apply(const TrainApplyParams& p) {
  for_runs(
      p.job, [&](const TrainApplyJob& job) { return job.out ? p.n : 0; },
      [&](const TrainApplyJob& job, const Run& run) { apply_run<T>(job, p.n, run); });
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_apply, TrainApplyParams, kTrainThreads, kApplyResident)
