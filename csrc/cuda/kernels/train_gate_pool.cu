// train_gate_pool: of the gate's map behind BatchNorm and ReLU, which is never stored, the sums over pixels of its
// values, of the pixels where it is above 0, and of raw - mean there: all that the forward and BatchNorm's backward ask
// of it, as the gradient of a mean over the map is the same for every pixel that the ReLU lets through.
//
// Work: runs of a sample's pixels times 64 channels, as train_sums. Memory: the raw output once.
#include "train_columns.cuh"
#include "train_source.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void train_gate_pool(const TrainGatePoolParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int V = kVector<T>, kAcross = kRunChannels / V;
  for (int64_t number = blockIdx.x;; number += gridDim.x) {
    int64_t at = number;
    Run run;
    if (!find_run(p.n, p.pixels, p.c, at, run)) return;
    const int channel = run.chunk * kRunChannels + threadIdx.x % kAcross * V;
    const int64_t first = int64_t(run.listed) * p.pixels * p.c;
    float sums[kPoolSums][V] = {};
    if (channel < p.c)
#pragma unroll 2
      for (int pixel = run.begin + threadIdx.x / kAcross; pixel < run.end; pixel += kTrainThreads / kAcross) {
        float raw[V], before[V];
        unpack<T>(load_map(static_cast<const T*>(p.of.raw) + first + pixel * p.c + channel), raw);
        before_relu<T>(p.of, first, channel, pixel * p.c, raw, before);
#pragma unroll
        for (int i = 0; i < V; i += 4) {
          float mean[4];
          load_floats(p.of.mean + channel + i, mean);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if (!(before[i + k] > 0)) continue;
            sums[kPooled][i + k] += before[i + k], sums[kAbove][i + k] += 1,
                sums[kApart][i + k] += raw[i + k] - mean[k];
          }
        }
      }
    float* const to = p.partials + (int64_t(run.listed) * train_runs(p.pixels) + run.run) * kPoolSums * p.c +
                      run.chunk * kRunChannels;
    block_columns(sums, reinterpret_cast<float*>(memory), [&](int row, int of, float sum) {
      if (run.chunk * kRunChannels + of < p.c) to[row * p.c + of] = sum;
    });
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_gate_pool, TrainGatePoolParams, kTrainThreads, kSumsResident)
