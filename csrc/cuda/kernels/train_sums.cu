// train_sums: what BatchNorm's backward sums up over pixels, for up to two maps of listed samples.
//
// Work: a task is a run of 512 of a sample's pixels times 64 channels; a thread has 16 bytes of channels and walks over
// pixels, the block adds up. Memory: raw output and gradient once.
#include "train_columns.cuh"
#include "train_source.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void sum_run(const TrainSumsJob& job, const Run& run, float* scratch) {
  constexpr int V = kVector<T>, kAcross = kRunChannels / V;
  const int sample = sample_of(job.samples, run.listed), channel = run.chunk * kRunChannels + threadIdx.x % kAcross * V;
  const int64_t first = int64_t(sample) * job.pixels * job.c;
  const float weight = job.weight ? job.weight[sample] : 1;
  float sums[2][V] = {}, dot = 0;
  if (channel < job.c)
#pragma unroll 2
    for (int pixel = run.begin + threadIdx.x / kAcross; pixel < run.end; pixel += kTrainThreads / kAcross) {
      const int at = pixel * job.c + channel;
      float grad[V], raw[V], before[V];
      unpack<T>(load_map(static_cast<const T*>(job.grad) + first + at), grad);
      unpack<T>(load_map(static_cast<const T*>(job.of.raw) + first + at), raw);
      before_relu<T>(job.of, first, channel, at - channel, raw, before);
#pragma unroll
      for (int i = 0; i < V; i += 4) {
        float mean[4], invstd[4];
        load_floats(job.of.mean + channel + i, mean), load_floats(job.of.invstd + channel + i, invstd);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float passes = before[i + k] > 0 ? grad[i + k] : 0, g = weight * passes;
          dot = fmaf(passes, before[i + k], dot), sums[0][i + k] += g;
          sums[1][i + k] = fmaf(g, (raw[i + k] - mean[k]) * invstd[k], sums[1][i + k]);
        }
      }
    }
  const int runs = train_runs(job.pixels);
  float* const to = job.partials + (int64_t(run.listed) * runs + run.run) * 2 * job.c + run.chunk * kRunChannels;
  block_columns(sums, scratch, [&](int row, int of, float sum) {
    if (run.chunk * kRunChannels + of < job.c) to[row * job.c + of] = sum;
  });
  if (!job.dots) return;
  const float total = block_total(dot, scratch);
  if (threadIdx.x == 0) job.dots[(int64_t(sample) * runs + run.run) * train_chunks(job.c) + run.chunk] = total;
}

template <class T>
__device__ inline void train_sums(const TrainSumsParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  for_runs(
      p.job, [&](const TrainSumsJob& job) { return job.grad ? samples_of(job.samples, p.n) : 0; },
      [&](const TrainSumsJob& job, const Run& run) { sum_run<T>(job, run, reinterpret_cast<float*>(memory)); });
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_sums, TrainSumsParams, kTrainThreads, kSumsResident)
