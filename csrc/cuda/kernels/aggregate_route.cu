// aggregate_route: X of a row's present nodes, in the same pass their gates' sums, and at the end the row's routing.
//
// Work: tasks, runs of tiles of 16 to 64 pixels of one sample and scale; blocks of 4 warps take tasks with stride
// gridDim.x, coarse scales first. Bound by memory. A tile: each thread pulls 2 x 2 pixels x 16 bytes at a time
// (pull.cuh), with up to 17 loads on their way, and stores them to X's map and to A in shared memory. A times the
// gate's 1x1 weights runs on tensor cores (float: on CUDA cores), 64 output channels at a time; ReLU and the sum over
// pixels are done in the accumulators' registers (gate.cuh), nothing of it is stored. The weights' first chunks are on
// their way while X is pulled, and stay for the whole run where all of them fit the ring.
// Small gate: A collects the means of 4x4 blocks, a sixteenth of the pixels, of many tiles before it is multiplied.
// Read: each source once, `up` 2.25 times (a tile's border), from L2; weights once per tile, from L2. Written: X.
// Registers: 128, so that four blocks run at once. Shared memory: A and a ring of weights; of a C = 64 network at
// 1024 x 2048 about 50 KB: A is 34 KB, 64 pixels at C = 256 or 32 at C = 512.
#include "aggregate_route.h"
#include "gate_tiles.cuh"
#include "route.cuh"
#include "tile_scheduler.cuh"

namespace dynroute::cuda {

// The beginning of shared memory.
struct alignas(16) AggregateHead {
  int counts[kScales];  // of present samples
  ScheduledTile work;   // the task: what all threads know alike needs no registers of each
  int forced;           // alphas are given
  int last;             // block: of a node, of the row
};
static_assert(sizeof(AggregateHead) == kAggregateHead);

// What scale `from` of the row before has handed on by a path.
template <class T>
__device__ inline const T* handed_on(const AggregateRouteParams& p, int from, int path, int64_t sample) {
  const int64_t size = p.maps[from].shape.size();
  return static_cast<const T*>(p.maps[from].halves) + sample * size + in_halves(path, size);
}

// A node's, for finish_gate.
struct NodeEnd {
  const AggregateRouteParams& p;
  int s, sample, tasks;
  __device__ const Matrix& gate() const { return p.gate[s]; }
  __device__ const float* partials() const { return p.partials[s] + int64_t(sample) * tasks * p.gate[s].n_pad; }
  __device__ int pixels() const {
    return gate_side(p.maps[s].shape.h, p.small_gate) * gate_side(p.maps[s].shape.w, p.small_gate);
  }
  __device__ const float* fc_weight() const { return p.fc_weight[s]; }
  __device__ const float* fc_bias() const { return p.fc_bias[s]; }
};

// By one whole block: alphas of node (sample, s) from its tasks' sums.
__device__ inline void finish_node(const AggregateRouteParams& p, const Io& io, int s, int sample, int tasks,
                                   float* scratch) {
  static_assert(kPublishedOrder[0] == kKeep && kPublishedOrder[1] == kUp && kPublishedOrder[2] == kDown);
  const bool up = path_exists(p.row_index, p.rows, s, kUp), down = path_exists(p.row_index, p.rows, s, kDown);
  const int gates = 1 + up + down;
  const NodeEnd end{p, s, sample, tasks};
  finish_gate(end, tasks, gates, p.activation, scratch, [&](int g, float value) {
    const int64_t node = node_index(sample, p.rows, p.row_index, s);
    io.alphas[node * kPaths + (g == 0 ? kKeep : g == 1 && up ? kUp : kDown)] = value;
    if (g > 0) return;
    const Matrix& gate = p.gate[s];
    count(io.node_macs + node * kNodeParts + kGatePart, gate.n * (int64_t(end.pixels()) * gate.k + gates));
  });
}

template <class T>
__device__ inline void aggregate_route(const AggregateRouteParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  static_assert(sizeof(RouteShared) <= kMinChunks * kAggregateChunk);
  AggregateHead& head = *reinterpret_cast<AggregateHead*>(memory);
  unsigned char* const rest = memory + sizeof(AggregateHead);
  if (threadIdx.x == 0) head.forced = p.io->gates != nullptr;
  if (threadIdx.x < kScales) head.counts[threadIdx.x] = p.row.counts[kPresent * kScales + threadIdx.x];
  __syncthreads();
  Row row = p.row;
  row.counts = head.counts;
  static_assert(kPresent == 0);

  const auto tasks = [&](int s) -> const Divisor& { return p.tiling[s].tasks; };
  const ScheduledTile& work = head.work;  // its tile is a task
  for (int at = blockIdx.x;; at += gridDim.x) {
    if (threadIdx.x == 0 && !find_tile(row, kPresent, tasks, p.n, at, head.work)) head.work.scale = -1;
    __syncthreads();
    if (work.scale < 0) break;
    const int s = work.scale;
    const ScaleMaps maps = p.maps[s];
    const Matrix gate = p.gate[s];
    const Node node = p.row.nodes[work.sample * kScales + s];
    const bool gated = gate.weight && !head.forced;
    const int64_t size = maps.shape.size(), sample = work.sample;
    T* const x = static_cast<T*>(node.x_map ? maps.map[1] : maps.map[0]) + sample * size;
    const T* const other = static_cast<const T*>(node.x_map ? maps.map[0] : maps.map[1]) + sample * size;
    const AggregateTiling& tiling = p.tiling[s];
    const T *down = nullptr, *up = nullptr;
    if (node.source_down != 0) down = handed_on<T>(p, source_scale(s, kDown), kDown, sample);
    if (node.source_up != 0) up = handed_on<T>(p, source_scale(s, kUp), kUp, sample);
    const Task<T> task = {{down, node.source_down, node.aliased ? x : other, node.source_keep, up, node.source_up,
                           maps.shape.h, maps.shape.w, maps.shape.c},
                          node.aliased ? nullptr : x,
                          tiling,
                          work.tile * tiling.run,
                          min((work.tile + 1) * tiling.run, tiling.tiles),
                          p.small_gate != 0};
    if (!gated) {
      for (int tile = task.begin; tile < task.end && task.out; ++tile)
        pull_tile<T, false>(task, TilePlace(tiling, tile), 0, nullptr, 0);
      __syncthreads();
      continue;
    }

    float* totals;
    gated_tiles<T>(task, gate, rest, totals);
    __syncthreads();
    store_partial<T>(totals, gate.n_pad, p.partials[s] + (sample * tiling.tasks + work.tile) * gate.n_pad);
    if (arrive_last(p.node_arrivals + work.sample * kScales + s, tiling.tasks, &head.last)) {
      finish_node(p, *p.io, s, work.sample, tiling.tasks, reinterpret_cast<float*>(rest));
    }
    __syncthreads();
  }
  const Io io = *p.io;  // asked for before anyone waits
  if (arrive_last(p.row_arrivals, gridDim.x, &head.last)) route(p, io, *reinterpret_cast<RouteShared*>(rest));
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(aggregate_route, AggregateRouteParams, kThreads, kAggregateBlocks)
