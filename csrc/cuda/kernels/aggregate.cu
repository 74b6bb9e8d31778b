// aggregate: X from its sources as an operator, for every sample: the same pull as the network's (pull.cuh).
//
// Work: a thread makes 2 x 2 pixels of a 16-byte group of channels at a time, neighbouring threads neighbouring groups.
// Memory: each source once, `up`'s pixels 9 loads for 4 results, from L2 but for the first; X once.
#include "aggregate.h"

#include "pull.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void aggregate(const AggregateParams& p) {
  const int groups = p.c / kVector<T>, across = ceil_div(p.w, 2);
  const int64_t of_sample = aggregate_units(p, sizeof(T)), size = int64_t(p.h) * p.w * p.c;
  for (int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x; at < p.n * of_sample;
       at += int64_t(gridDim.x) * kThreads) {
    const int64_t sample = at / of_sample;
    const int unit = int(at % of_sample), channel = unit % groups * kVector<T>;
    const int x = unit / groups % across * 2, y = unit / groups / across * 2;
    const auto source = [&](const void* map, int64_t values) { return static_cast<const T*>(map) + sample * values; };
    const auto weight = [&](const void* map, int path) {
      return !map ? 0.f : p.alphas ? float(static_cast<const T*>(p.alphas)[sample * kPaths + path]) : 1.f;
    };
    const XSources<T> from = {source(p.down, size), source(p.keep, size), source(p.up, size / 4),
                              weight(p.down, kDown), weight(p.keep, kKeep), weight(p.up, kUp), p.h, p.w, p.c};
    uint4 made[4];
    pull(from, y, x, channel, made);
    T* const out = static_cast<T*>(p.out) + sample * size + channel;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (y + i / 2 < p.h && x + i % 2 < p.w)
        store_global(out + ((y + i / 2) * p.w + x + i % 2) * p.c, made[i]);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(aggregate, AggregateParams, kThreads, kAggregateResident)
