// aggregate: X from its sources as an operator, for every sample: the same pull as the network's (pull.cuh).
//
// Work: a thread makes 2 x 2 pixels of a 16-byte group of channels at a time, neighbouring threads neighbouring groups.
// Memory: each source once, `up`'s pixels 9 loads for 4 results, from L2 but for the first; X once.
#include "aggregate.h"
#include "pull.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void aggregate(const AggregateParams& p) {
  const int units = ceil_div(p.h, 2) * p.across * p.groups;
  const int64_t size = int64_t(p.h) * p.w * p.c;
  for (int at = blockIdx.x; at < p.n * p.tasks; at += gridDim.x) {
    const int unit = at % p.tasks * kThreads + threadIdx.x;
    if (unit >= units) continue;
    const int64_t sample = at / p.tasks;
    const int pair = unit / p.groups, line = pair / p.across, channel = (unit - pair * p.groups) * kVector<T>;
    const int x = (pair - line * p.across) * 2, y = line * 2;
    const auto source = [&](const void* map, int64_t values) { return static_cast<const T*>(map) + sample * values; };
    const auto weight = [&](const void* map, int path) {
      return !map ? 0.f : p.alphas ? float(static_cast<const T*>(p.alphas)[sample * kPaths + path]) : 1.f;
    };
    const XSources<T> from(source(p.down, size), weight(p.down, kDown), source(p.keep, size), weight(p.keep, kKeep),
                           source(p.up, size / 4), weight(p.up, kUp), p.h, p.w, p.c);
    const Quad quad(p.h, p.w, p.c, y, x, channel);
    uint4 made[4];
    pull(from, y, x, channel, quad, made);
    T* const out = static_cast<T*>(p.out) + sample * size;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (y + i / 2 < p.h && x + i % 2 < p.w) store_global(out + quad.at(i), made[i]);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(aggregate, AggregateParams, kThreads, kAggregateResident)
