// gate: the gate as an operator, for present samples: aggregate_route's tasks and their end, of a map that is there.
//
// Work: tasks of all present samples, with stride gridDim.x; the last block to finish a sample's adds them up.
#include "arrival.cuh"
#include "gate.h"
#include "gate_tiles.cuh"

namespace dynroute::cuda {

// The sample of a task, for do_task and finish_gate.
struct SampleOfTask {
  const GateParams& p;
  int sample;
  __device__ const Matrix& gate() const { return p.gate; }
  __device__ const AggregateTiling& tiling() const { return p.tiling; }
  __device__ float* partials() const { return p.partials + int64_t(sample) * p.tiling.tasks * p.gate.n_pad; }
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
    const XSources<T> source(nullptr, 0, x, 1, nullptr, 0, p.h, p.w, p.c);
    const int begin = number * tiling.run;
    const Task<T> task = {source, nullptr, begin, min(begin + tiling.run, tiling.tiles), true, p.small_gate != 0};
    const SampleOfTask of{p, sample};
    do_task(task, of, rest);
    store_partial<T>(of, number, rest);
    if (arrive_last(p.arrivals + sample, tiling.tasks, last)) {
      const auto write = [&](int g, float value) { static_cast<T*>(p.out)[sample * p.gates + g] = T(value); };
      finish_gate(of, tiling.tasks, p.gates, p.activation, reinterpret_cast<float*>(rest), write);
    }
    __syncthreads();
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(gate, GateParams, kThreads, kAggregateBlocks)
