// route: open lists, counts, slots and the next layer's nodes from alphas, as an operator.
//
// Work: one block; a warp per scale, a lane per sample, 32 samples at a time. Positions in lists come from ballots, and
// neighbouring scales meet in shared memory. Some hundred bytes a sample: the launch is what it costs.
#include "route.h"

#include "route.cuh"

namespace dynroute::cuda {

// The rest of a list.
__device__ inline void end_list(int* list, int count, int n) {
  for (int i = count + int(threadIdx.x % 32); i < n; i += 32) list[i] = -1;
}

template <class T>
__device__ inline void route(const RouteParams& p) {
  static_assert(kThreads == 32 * kScales);
  __shared__ unsigned handed[kScales][32];  // bit p: something by path p
  const int s = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint8_t* const exists = p.path_exists + s * kPaths;
  int* const open_list = p.open + int64_t(s) * p.n;
  int* const path_lists = p.path_open + int64_t(s) * kPaths * p.n;
  int open = 0, path_open[kPaths] = {};
  for (int first = 0; first < p.n; first += 32) {
    const int i = first + lane;
    const int64_t at = int64_t(i) * kScales + s;
    const bool there = i < p.n, present = there && p.present[at];
    float alpha[kPaths] = {};
#pragma unroll
    for (int path = 0; path < kPaths; ++path) {
      const T given = there ? static_cast<const T*>(p.alphas)[at * kPaths + path] : T(0.f);
      const T kept = present && exists[path] ? given : T(0.f);
      alpha[path] = float(kept);
      if (there) static_cast<T*>(p.masked)[at * kPaths + path] = kept;
    }
    const Route<float> routed = route_of(alpha);
    const bool closed = present && routed.closed, is_open = present && !closed;
    append(open_list, open, is_open, i);
    unsigned paths = 0;
#pragma unroll
    for (int path = 0; path < kPaths; ++path) {
      append(path_lists + int64_t(path) * p.n, path_open[path], is_open && exists[path] && routed.weight[path] != 0, i);
      paths |= unsigned(hands_on(path, exists[path], present, closed)) << path;
    }
    handed[s][lane] = paths;
    __syncthreads();
    bool arrives = false;
#pragma unroll
    for (int path = 0; path < kPaths; ++path) {
      const int from = source_scale(s, path);
      if (from >= 0 && from < kScales) arrives |= handed[from][lane] >> path & 1;
    }
    if (there) {
      p.closed[at] = closed, p.next_present[at] = arrives;
      p.next_slots[at] = is_open ? 1 - p.slots[at] : p.slots[at];
    }
    __syncthreads();
  }
  end_list(open_list, open, p.n);
  if (lane == 0) p.open_count[s] = open;
#pragma unroll
  for (int path = 0; path < kPaths; ++path) {
    end_list(path_lists + int64_t(path) * p.n, path_open[path], p.n);
    if (lane == 0) p.path_count[s * kPaths + path] = path_open[path];
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(route, RouteParams, kThreads)
