// How `aggregate` is launched, and what host and device have to agree on.
#pragma once
#include "params.h"

namespace dynroute::cuda {

// X is made in tiles of 4x4 blocks of pixels: 2 x 2 blocks, which is all that gemm.cuh's A holds (float: 1 x 2), or, so
// that small maps give all multiprocessors something to do, 1 x 2 or 1 x 1. A task is a run of a sample's tiles, and
// leaves one row of n_pad partial sums; the one block that adds a node's up reads at most 64 KB of them.
constexpr int kEnoughTiles = 128, kPartialSums = 16384;

struct AggregateTiling {
  int blocks_y = 0, blocks_x = 0;  // of a tile
  int tiles_x = 0, tiles = 0;      // in a row of the map, in all
  int run = 0, tasks = 0;          // tiles of a task (the last may have fewer); tasks of a sample
};

// Depends on shape and type alone: so does, then, the order in which a gate's mean is summed up.
DYNROUTE_DEVICE_TOO constexpr AggregateTiling aggregate_tiling(int h, int w, int c, DType type) {
  if (h == 0 || w == 0 || c == 0) return {};  // a scale that is not there
  const int n_pad = (c / 2 + 31) / 32 * 32, most = n_pad < kPartialSums ? kPartialSums / n_pad : 1;
  const int blocks_y = (h + 3) / 4, blocks_x = (w + 3) / 4;  // of the map
  AggregateTiling tiling;
  for (int blocks = type == DType::kFloat ? 2 : 4; blocks > 0; blocks /= 2) {
    const int y = blocks == 4 ? 2 : 1, x = blocks == 1 ? 1 : 2;
    const int tiles_x = (blocks_x + x - 1) / x, tiles = tiles_x * ((blocks_y + y - 1) / y);
    if (tiling.tiles > 0 && tiles > most) break;
    tiling = {y, x, tiles_x, tiles, 0, 0};
    if (tiles >= kEnoughTiles) break;
  }
  tiling.run = (tiling.tiles + most - 1) / most;
  tiling.tasks = (tiling.tiles + tiling.run - 1) / tiling.run;
  return tiling;
}

// Rows of A: no tile needs fewer than gemm.cuh's warps read.
DYNROUTE_DEVICE_TOO constexpr int aggregate_rows_of_a(int blocks) { return blocks == 4 ? 64 : 32; }

// Floats that partials[s] needs for n samples.
inline int64_t aggregate_partials(const Level& level, int n_pad, int n, DType type) {
  return int64_t(n) * aggregate_tiling(level.h, level.w, level.c, type).tasks * n_pad;
}

// Shared memory, in bytes: the tilings, A, then per output channel the gate's shift and the task's sums of each row of
// warps, then a ring of chunks of weights, of any length from the least to the most. The kernel uses what it is given:
// the longer the ring, the more weights are on their way, which counts where few blocks run and less where many do.
constexpr int kAggregateHead = 144, kAggregateChunk = 4096, kLeastChunks = 3, kMostChunks = 6;
DYNROUTE_DEVICE_TOO constexpr int aggregate_warp_rows(DType type) { return type == DType::kFloat ? 4 : 2; }
inline int aggregate_shared(const Matrix& gate, const AggregateTiling& tiling, DType type) {
  const int row = type == DType::kFloat ? 4 * (gate.k_pad + 4) : 2 * (gate.k_pad + 8);
  const int rows = aggregate_rows_of_a(tiling.blocks_y * tiling.blocks_x);
  return kAggregateHead + rows * row + (1 + aggregate_warp_rows(type)) * gate.n_pad * int(sizeof(float));
}

constexpr int kAggregateBlocks = 4;  // of a multiprocessor at once, by registers

inline LaunchShape aggregate_shape(const AggregateParams& params, DType type, const DeviceLimits& device) {
  int64_t tasks = 0;
  int shared = kAggregateHead;  // without the ring
  for (int s = 0; s < scales_of_row(params.row_index); ++s) {
    const Level& level = params.level[s];
    const AggregateTiling tiling = aggregate_tiling(level.h, level.w, level.c, type);
    tasks += int64_t(params.n) * tiling.tasks;
    if (!params.gate[s].weight) continue;
    const int needed = aggregate_shared(params.gate[s], tiling, type);
    shared = needed > shared ? needed : shared;
  }
  const int reserved = 1024;  // by the system, per block
  const int least = shared + kLeastChunks * kAggregateChunk;
  int64_t blocks = device.shared_per_multiprocessor / (least + reserved);  // per multiprocessor
  const int64_t wanted = (tasks + device.multiprocessors - 1) / device.multiprocessors;
  if (blocks > kAggregateBlocks) blocks = kAggregateBlocks;
  if (blocks > wanted) blocks = wanted;
  if (blocks < 1) blocks = 1;
  int room = int(device.shared_per_multiprocessor / blocks) - reserved;
  if (room > device.shared_per_block) room = device.shared_per_block;
  int chunks = (room - shared) / kAggregateChunk;
  chunks = chunks < kLeastChunks ? kLeastChunks : chunks > kMostChunks ? kMostChunks : chunks;
  blocks *= device.multiprocessors;
  return {int(tasks < 1 ? 1 : tasks < blocks ? tasks : blocks), kThreads, shared + chunks * kAggregateChunk};
}

}  // namespace dynroute::cuda
