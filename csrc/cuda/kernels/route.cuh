// A row's end: how a block learns that it is the last, and what the last one does: alphas from partial sums, and from
// alphas the tables that the next kernels read.
//
// Memory order. A block's writes, a barrier, then by one thread: fence, atomicAdd, fence; a barrier, then reads. Fences
// are cumulative and barriers order within a block, so what any thread of a block wrote before it arrived is seen by
// all threads of the block that arrives last. What another block has written in this launch is read past L1 (__ldcg).
#pragma once
#include "primitives.cuh"

namespace dynroute::cuda {

// Called by the whole block; true in the block that arrives as the last of `expected`.
__device__ inline bool arrive_last(int* counter, int expected, int* shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *shared = atomicAdd(counter, 1) == expected - 1;
    __threadfence();
  }
  __syncthreads();
  return *shared;
}

// What a chunk's samples leave to the neighbouring scales of the next row.
enum Offer { kOffersUp = 1, kOffersDown = 2 };
struct RouteShared {
  int offers[kScales][32];                   // bits of Offer: the path exists and its node is present and not closed
  float up[kScales][32], down[kScales][32];  // weights
};

// Appends i to a list for each lane with `is`, lanes in order; `count` is the list's length so far, in all lanes.
__device__ inline void append(int* list, int& count, bool is, int i) {
  const unsigned lanes = __ballot_sync(~0u, is);
  if (is) list[count + __popc(lanes & ((1u << threadIdx.x % 32) - 1))] = i;
  count += __popc(lanes);
}

// The last block of a row. A warp per scale, a lane per sample, 32 samples at a time: positions in lists come from
// ballots, and neighbouring scales meet in shared memory.
__device__ inline void route(const AggregateParams& p, const Io& io, RouteShared& shared) {
  static_assert(kThreads == 32 * kScales);
  const int s = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int scales = scales_of_row(p.row_index);
  const bool computed = !io.gates && p.gate[0].weight;
  int open = 0, up_open = 0, down_open = 0, next_present = 0;  // lengths of this scale's lists
  for (int first = 0; first < p.n; first += 32) {
    const int i = first + lane;
    const bool exists = i < p.n && s < scales;
    const int64_t at = ((int64_t(i) * p.rows + p.row_index) * kScales + s) * kPaths;
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
    const bool closed = alpha[kUp] + alpha[kKeep] + alpha[kDown] < float(kThreshold), is_open = present && !closed;
    float weight[kPaths];
#pragma unroll
    for (int path = 0; path < kPaths; ++path)
      weight[path] = is_open && alpha[path] > float(kThreshold) ? alpha[path] : 0;
    if (present && closed) weight[kKeep] = 1;
    // H goes where the keep source was, or beside X if X is that source
    const int out_map = closed ? x_map : 1 - x_map;
    if (present) {
      node->closed = closed;
      node->out_map = out_map;
#pragma unroll
      for (int path = 0; path < kPaths; ++path) {
        node->weight[path] = weight[path];
        if (!computed) io.alphas[at + path] = alpha[path];
      }
    }
    const auto list = [&](List which) { return p.row.samples + (which * kScales + s) * p.n; };
    append(list(kOpen), open, is_open, i);
    append(list(kUpOpen), up_open, weight[kUp] != 0, i);
    append(list(kDownOpen), down_open, weight[kDown] != 0, i);
    if (!p.next.nodes) continue;

    const bool offers_up = is_open && path_exists(p.row_index, p.rows, s, kUp);
    const bool offers_down = is_open && path_exists(p.row_index, p.rows, s, kDown);
    shared.offers[s][lane] = (offers_up ? kOffersUp : 0) | (offers_down ? kOffersDown : 0);
    shared.up[s][lane] = weight[kUp];
    shared.down[s][lane] = weight[kDown];
    __syncthreads();
    Node next = {};
    bool arrives = present;
    next.source_keep = weight[kKeep];
    if (s > 0) {
      arrives |= (shared.offers[s - 1][lane] & kOffersDown) != 0;
      next.source_down = shared.down[s - 1][lane];
    }
    if (s + 1 < kScales) {
      arrives |= (shared.offers[s + 1][lane] & kOffersUp) != 0;
      next.source_up = shared.up[s + 1][lane];
    }
    next.present = arrives && s < scales_of_row(p.row_index + 1);
    next.aliased = next.source_keep == 1 && next.source_down == 0 && next.source_up == 0;
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
