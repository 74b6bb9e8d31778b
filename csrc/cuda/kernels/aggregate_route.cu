// aggregate_route: X of a row's present nodes, in the same pass their gates' sums, and at the end the row's routing.
//
// Work: tasks, runs of tiles of 16 to 64 pixels of one sample and scale; blocks of 4 warps take tasks with stride
// gridDim.x, coarse scales first. Bound by memory. A tile: each thread pulls 2 x 2 pixels x 16 bytes at a time
// (pull.cuh), with up to 17 loads on their way, and stores them to X's map and to A in shared memory. A times the
// gate's 1x1 weights runs on tensor cores (float: on CUDA cores), 64 or 32 output channels at a time; ReLU and the sum
// over pixels are done in the accumulators' registers (gate.cuh), nothing of it is stored. The weights' first chunks
// are on their way while X is pulled, and stay for the whole run where all of them fit the ring. Small gate: A collects
// the means of 4x4 blocks, a sixteenth of the pixels, of many tiles before it is multiplied. Read: each source once,
// `up` 2.25 times (a tile's border), from L2; weights once per tile, from L2. Written: X. What a task is, one thread
// finds out, and leaves in shared memory. Registers: 128, so that four blocks run at once. Shared memory: A and a ring
// of weights; of a C = 64 network at 1024 x 2048 about 50 KB: A is 34 KB, 64 pixels at C = 256 or 32 at C = 512.
#include "aggregate_route.h"
#include "gate_tiles.cuh"
#include "route.cuh"
#include "tile_scheduler.cuh"

namespace dynroute::cuda {

// The beginning of shared memory.
template <class T>
struct alignas(16) AggregateHead {
  int counts[kScales];  // of present samples
  int at;               // the number of the block's next task
  int forced;           // alphas are given
  int last;             // block: of a node, of the row
  ScheduledTile work;   // the task (its number is `tile`), and what it does: what all threads know alike needs no
  Task<T> task;         // registers of each
};

// What scale `from` of the row before has handed on by a path.
template <class T>
__device__ inline const T* handed_on(const AggregateRouteParams& p, int from, int path, int64_t sample) {
  const int64_t size = p.maps[from].shape.size();
  return static_cast<const T*>(p.maps[from].halves) + sample * size + in_halves(path, size);
}

// The node of a task, for do_task and finish_gate.
struct NodeOfTask {
  const AggregateRouteParams& p;
  const ScheduledTile& work;  // in shared memory, and read each time
  __device__ int s() const { return work.scale; }
  __device__ const Matrix& gate() const { return p.gate[s()]; }
  __device__ const AggregateTiling& tiling() const { return p.tiling[s()]; }
  __device__ float* partials() const {
    return p.partials[s()] + int64_t(work.sample) * tiling().tasks * p.gate[s()].n_pad;
  }
  __device__ int pixels() const {
    return gate_side(p.maps[s()].shape.h, p.small_gate) * gate_side(p.maps[s()].shape.w, p.small_gate);
  }
  __device__ const float* fc_weight() const { return p.fc_weight[s()]; }
  __device__ const float* fc_bias() const { return p.fc_bias[s()]; }
};

// By one whole block: alphas of a node from its tasks' sums.
__device__ inline void finish_node(const AggregateRouteParams& p, const Io& io, const NodeOfTask& of, float* scratch) {
  static_assert(kPublishedOrder[0] == kKeep && kPublishedOrder[1] == kUp && kPublishedOrder[2] == kDown);
  const int s = of.s(), sample = of.work.sample;
  const bool up = path_exists(p.row_index, p.rows, s, kUp), down = path_exists(p.row_index, p.rows, s, kDown);
  const int gates = 1 + up + down;
  finish_gate(of, of.tiling().tasks, gates, p.activation, scratch, [&](int g, float value) {
    const int64_t node = node_index(sample, p.rows, p.row_index, s);
    io.alphas[node * kPaths + (g == 0 ? kKeep : g == 1 && up ? kUp : kDown)] = value;
    if (g > 0) return;
    const Matrix& gate = of.gate();
    count(io.node_macs + node * kNodeParts + kGatePart, gate.n * (int64_t(of.pixels()) * gate.k + gates));
  });
}

// By one thread: the block's next task; if there is none, a scale below 0.
template <class T>
__device__ inline void find_task(const AggregateRouteParams& p, AggregateHead<T>& head) {
  Row row = p.row;
  row.counts = head.counts;
  static_assert(kPresent == 0);
  const auto tasks = [&](int s) -> const Divisor& { return p.tiling[s].tasks; };
  ScheduledTile work;
  if (!find_tile(row, kPresent, tasks, p.n, head.at, work)) {
    head.work.scale = -1;
    return;
  }
  head.at += gridDim.x, head.work = work;
  const int s = work.scale;
  const Node& node = p.row.nodes[work.sample * kScales + s];
  const ScaleMaps& maps = p.maps[s];
  const int64_t sample = work.sample, from = sample * maps.shape.size();
  const int x_map = node.x_map, aliased = node.aliased;
  const float of_down = node.source_down, of_keep = node.source_keep, of_up = node.source_up;
  T* const x = static_cast<T*>(x_map ? maps.map[1] : maps.map[0]) + from;
  const T* const other = static_cast<const T*>(x_map ? maps.map[0] : maps.map[1]) + from;
  const T *down = nullptr, *up = nullptr;
  if (of_down != 0) down = handed_on<T>(p, source_scale(s, kDown), kDown, sample);
  if (of_up != 0) up = handed_on<T>(p, source_scale(s, kUp), kUp, sample);
  const bool gated = p.gate[s].weight && !head.forced;
  const int run = p.tiling[s].run, begin = work.tile * run;
  const int end = gated || !aliased ? min(begin + run, p.tiling[s].tiles) : begin;  // else there is nothing to do
  const MapShape& shape = maps.shape;
  const XSources<T> sources(down, of_down, aliased ? x : other, of_keep, up, of_up, shape.h, shape.w, shape.c);
  head.task = {sources, aliased ? nullptr : x, begin, end, gated, p.small_gate != 0};
}

template <class T>
__device__ inline void aggregate_route(const AggregateRouteParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  static_assert(sizeof(AggregateHead<T>) <= kAggregateHead);
  static_assert(sizeof(RouteShared) <= kMinChunks * kAggregateChunk);
  AggregateHead<T>& head = *reinterpret_cast<AggregateHead<T>*>(memory);
  unsigned char* const rest = memory + kAggregateHead;
  if (threadIdx.x == 0) head.forced = p.io->gates != nullptr, head.at = blockIdx.x;
  if (threadIdx.x < kScales) head.counts[threadIdx.x] = p.row.counts[kPresent * kScales + threadIdx.x];
  __syncthreads();
  for (;;) {
    if (threadIdx.x == 0) find_task(p, head);
    __syncthreads();
    const ScheduledTile& work = head.work;
    if (work.scale < 0) break;
    const NodeOfTask of{p, work};
    do_task(head.task, of, rest);
    if (head.task.gated) {
      store_partial<T>(of, work.tile, rest);
      if (arrive_last(p.node_arrivals + work.sample * kScales + work.scale, of.tiling().tasks, &head.last))
        finish_node(p, *p.io, of, reinterpret_cast<float*>(rest));
    }
    __syncthreads();
  }
  const Io io = *p.io;  // asked for before anyone waits
  if (arrive_last(p.row_arrivals, gridDim.x, &head.last)) route(p, io, *reinterpret_cast<RouteShared*>(rest));
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(aggregate_route, AggregateRouteParams, kThreads, kAggregateBlocks)
