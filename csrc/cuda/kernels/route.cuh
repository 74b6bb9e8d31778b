// A row's end: from alphas the tables that the next kernels read, by the block that arrives last. What other blocks
// have written in this launch, the alphas, it reads past L1 (arrival.cuh).
#pragma once
#include "arrival.cuh"
#include "contract/routing.h"

namespace dynroute::cuda {

// What 32 samples' nodes hand on to the next row.
struct RouteShared {
  unsigned paths[kScales][32];        // bit p: something by path p
  float weight[kScales][kPaths][32];  // 0 where nothing is handed on
};

// The last block of a row. A warp per scale, a lane per sample, 32 samples at a time: positions in lists come from
// ballots, and neighbouring scales meet in shared memory.
__device__ inline void route(const AggregateRouteParams& p, const Io& io, RouteShared& shared) {
  static_assert(kThreads == 32 * kScales);
  const int s = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int scales = scales_of_row(p.row_index);
  const bool computed = !io.gates && p.gate[0].weight;
  int open = 0, up_open = 0, down_open = 0, next_present = 0;  // lengths of this scale's lists
  for (int first = 0; first < p.n; first += 32) {
    const int i = first + lane;
    const bool exists = i < p.n && s < scales;
    const int64_t at = node_index(i, p.rows, p.row_index, s) * kPaths;
    Node* node = p.row.nodes + i * kScales + s;
    float alpha[kPaths] = {};
    bool present = false;
    int x_map = 0;
    if (exists) {
      present = node->present;
      x_map = node->x_map;
#pragma unroll
      for (int path = 0; path < kPaths; ++path)
        if (path_exists(p.row_index, p.rows, s, path))
          alpha[path] = io.gates ? io.gates[at + path] : computed ? __ldcg(io.alphas + at + path) : 1;
    }
    const Route<float> routed = present ? route_of(alpha) : Route<float>{true, {}};
    // H goes where the keep source was, or beside X if X is that source
    const int out_map = routed.closed ? x_map : 1 - x_map;
    if (present) {
      node->closed = routed.closed;
      node->out_map = out_map;
#pragma unroll
      for (int path = 0; path < kPaths; ++path) {
        node->weight[path] = routed.weight[path];
        if (!computed) io.alphas[at + path] = alpha[path];
      }
    }
    const auto list = [&](List which) { return p.row.samples + (which * kScales + s) * p.n; };
    append(list(kOpen), open, !routed.closed, i);
    append(list(kUpOpen), up_open, routed.weight[kUp] != 0, i);
    append(list(kDownOpen), down_open, routed.weight[kDown] != 0, i);
    if (!p.next.nodes) continue;

    unsigned paths = 0;
#pragma unroll
    for (int path = 0; path < kPaths; ++path) {
      const bool hands = hands_on(path, path_exists(p.row_index, p.rows, s, path), present, routed.closed);
      paths |= unsigned(hands) << path;
      shared.weight[s][path][lane] = routed.weight[path];
    }
    shared.paths[s][lane] = paths;
    __syncthreads();
    bool arrives[kPaths] = {};
    float weight[kPaths] = {};
#pragma unroll
    for (int path = 0; path < kPaths; ++path) {
      const int from = source_scale(s, path);
      if (from < 0 || from >= kScales) continue;
      arrives[path] = shared.paths[from][lane] >> path & 1;
      weight[path] = shared.weight[from][path][lane];
    }
    const Inputs<float> inputs = inputs_of(arrives, weight);
    Node next = {};
    next.source_down = inputs.weight[kDown], next.source_keep = inputs.weight[kKeep];
    next.source_up = inputs.weight[kUp];
    next.present = inputs.present && s < scales_of_row(p.row_index + 1);
    next.aliased = inputs.aliased;
    next.x_map = !present ? 0 : next.aliased ? out_map : 1 - out_map;
    if (i < p.n) p.next.nodes[i * kScales + s] = next;
    append(p.next.samples + (kPresent * kScales + s) * p.n, next_present, next.present, i);
    __syncthreads();
  }
  if (lane == 0) {
    p.row.counts[kOpen * kScales + s] = open;
    p.row.counts[kUpOpen * kScales + s] = up_open;
    p.row.counts[kDownOpen * kScales + s] = down_open;
    if (p.next.nodes) p.next.counts[kPresent * kScales + s] = next_present;
  }
}

}  // namespace dynroute::cuda
