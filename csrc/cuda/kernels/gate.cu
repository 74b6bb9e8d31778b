// gate: the gate as an operator, for present samples: aggregate_route's tasks and their end, of a map that is there.
//
// Work: tasks of all present samples, with stride gridDim.x; the last block to finish a sample's adds them up.
#include "arrival.cuh"
#include "gate.h"
#include "gate_tiles.cuh"

namespace dynroute::cuda {

// A sample's, for finish_gate.
struct SampleEnd {
  const GateParams& p;
  int sample, tasks;
  __device__ const Matrix& gate() const { return p.gate; }
  __device__ const float* partials() const { return p.partials + int64_t(sample) * tasks * p.gate.n_pad; }
  __device__ int pixels() const { return gate_side(p.h, p.small_gate) * gate_side(p.w, p.small_gate); }
  __device__ const float* fc_weight() const { return p.fc_weight; }
  __device__ const float* fc_bias() const { return p.fc_bias; }
};

template <class T>
__device__ inline void gate(const GateParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  static_assert(sizeof(int) <= kAggregateHead);
  int* const last = reinterpret_cast<int*>(memory);
  unsigned char* const rest = memory + kAggregateHead;
  const AggregateTiling& tiling = p.tiling;
  const int samples = p.present.count ? *p.present.count : p.n;
  for (int at = blockIdx.x; at < samples * tiling.tasks; at += gridDim.x) {
    const int listed = at / tiling.tasks, number = at % tiling.tasks;
    const int sample = p.present.count ? p.present.samples[listed] : listed;
    const T* const x = static_cast<const T*>(p.x) + int64_t(sample) * p.h * p.w * p.c;
    const Task<T> task = {{nullptr, 0, x, 1, nullptr, 0, p.h, p.w, p.c}, nullptr,          tiling, number * tiling.run,
                          min((number + 1) * tiling.run, tiling.tiles),  p.small_gate != 0};
    float* totals;
    gated_tiles<T>(task, p.gate, rest, totals);
    __syncthreads();
    float* const partials = p.partials + int64_t(sample) * tiling.tasks * p.gate.n_pad;
    store_partial<T>(totals, p.gate.n_pad, partials + number * p.gate.n_pad);
    if (arrive_last(p.arrivals + sample, tiling.tasks, last)) {
      const auto write = [&](int g, float value) { static_cast<T*>(p.out)[sample * p.gates + g] = T(value); };
      finish_gate(SampleEnd{p, sample, tiling.tasks}, tiling.tasks, p.gates, p.activation,
                  reinterpret_cast<float*>(rest), write);
    }
    __syncthreads();
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(gate, GateParams, kThreads, kAggregateBlocks)
