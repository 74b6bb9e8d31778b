// How `aggregate_route` is launched, and what host and device have to agree on.
#pragma once
#include "params.h"

namespace dynroute::cuda {

// X is made in tiles of 4x4 blocks of pixels: 2 x 2 blocks, which is all that gemm.cuh's A holds (float: 1 x 2), or, so
// that small maps give all multiprocessors something to do, 1 x 2 or 1 x 1. A task is a run of a sample's tiles, and
// leaves one row of n_pad partial sums; the one block that adds a node's up reads at most 64 KB of them.
constexpr int kEnoughTiles = 128, kPartialSums = 16384;

// Depends on shape and type alone: so does, then, the order in which a gate's mean is summed up.
constexpr AggregateTiling aggregate_tiling(const MapShape& map, DType type) {
  if (map.h == 0 || map.w == 0 || map.c == 0) return {};  // a scale that is not there
  const int n_pad = padded(gate_channels(map.c)), max_tasks = n_pad < kPartialSums ? kPartialSums / n_pad : 1;
  const int blocks_y = ceil_div(map.h, 4), blocks_x = ceil_div(map.w, 4);  // of the map
  AggregateTiling tiling = {};
  for (int blocks = type == DType::kFloat ? 2 : 4; blocks > 0; blocks /= 2) {
    const int y = blocks == 4 ? 2 : 1, x = blocks == 1 ? 1 : 2;
    const int across = ceil_div(blocks_x, x), tiles = across * ceil_div(blocks_y, y);
    if (tiling.tiles > 0 && tiles > max_tasks) break;
    tiling.blocks_y = y, tiling.blocks_x = x, tiling.tiles = tiles, tiling.across = divisor(across);
    if (tiles >= kEnoughTiles) break;
  }
  tiling.run = ceil_div(tiling.tiles, max_tasks);
  tiling.tasks = divisor(ceil_div(tiling.tiles, tiling.run));
  tiling.groups = divisor(map.c * bytes_of(type) / 16);
  tiling.whole = map.h % (4 * tiling.blocks_y) == 0 && map.w % (4 * tiling.blocks_x) == 0;
  // 16-bit types: at fewer than 64 pixels a block's warps are two by two, and have 64 columns
  const bool is_narrow = n_pad % 64 != 0 && (type == DType::kFloat || tiling.blocks_y * tiling.blocks_x == 4);
  tiling.width = is_narrow ? 32 : 64;
  return tiling;
}

// Rows of A: no tile needs fewer than gemm.cuh's warps read.
DYNROUTE_DEVICE_TOO constexpr int aggregate_rows_of_a(int blocks) { return blocks == 4 ? 64 : 32; }

// Floats that partials[s] needs for n samples.
inline int64_t aggregate_partials(const MapShape& map, int n, DType type) {
  return int64_t(n) * aggregate_tiling(map, type).tasks * padded(gate_channels(map.c));
}

// Shared memory, in bytes: the head, A, then per output channel the gate's shift and the task's sums of each row of
// warps, then a ring of chunks of weights, of any length from kMinChunks to kMaxChunks. The kernel uses what it is
// given: the longer the ring, the more weights are on their way, which counts where few blocks run and less where many
// do.
constexpr int kAggregateHead = 112, kAggregateChunk = 4096, kMinChunks = 3, kMaxChunks = 6;
DYNROUTE_DEVICE_TOO constexpr int gate_warp_rows(DType type, int width) {
  return type == DType::kFloat || width == 32 ? 4 : 2;
}
// All of it before the ring; says in `tiling` where what lies.
inline int lay_out(AggregateTiling& tiling, const Matrix& gate, DType type) {
  const int row = type == DType::kFloat ? 4 * (gate.k_pad + 4) : 2 * (gate.k_pad + 8);
  const int floats = gate.n_pad * int(sizeof(float));
  tiling.shift = aggregate_rows_of_a(tiling.blocks_y * tiling.blocks_x) * row;
  tiling.totals = tiling.shift + floats;
  tiling.ring = tiling.totals + gate_warp_rows(type, tiling.width) * floats;
  return kAggregateHead + tiling.ring;
}
// How weights pass through a ring of so many bytes.
inline void set_ring(AggregateTiling& tiling, const Matrix& gate, DType type, int bytes) {
  const int of_k = type == DType::kFloat ? 16 : 32;  // gemm.cuh's chunks
  const int chunks = ceil_div(gate.n_pad, tiling.width) * (gate.k_pad / of_k), room = bytes / chunk_bytes(tiling.width);
  tiling.stays = chunks <= room;
  tiling.ahead = tiling.stays ? chunks : (room < kMaxChunks ? room : kMaxChunks) - 1;
}

constexpr int kAggregateBlocks = 4;  // of a multiprocessor at once, by registers

// Blocks of a multiprocessor for so many tasks, when a block needs `shared` bytes and the shortest ring; and the
// longest ring with which as many fit.
struct AggregateBlocks {
  int64_t blocks;
  int chunks;
  AggregateBlocks(int64_t tasks, int shared, const DeviceLimits& device) {
    blocks = device.shared_per_multiprocessor / (shared + kMinChunks * kAggregateChunk + kReservedShared);
    const int64_t wanted = ceil_div(tasks, device.multiprocessors);
    if (blocks > kAggregateBlocks) blocks = kAggregateBlocks;
    if (blocks > wanted) blocks = wanted;
    if (blocks < 1) blocks = 1;
    int room = int(device.shared_per_multiprocessor / blocks) - kReservedShared;
    if (room > device.shared_per_block) room = device.shared_per_block;
    chunks = (room - shared) / kAggregateChunk;
    chunks = chunks < kMinChunks ? kMinChunks : chunks > kMaxChunks ? kMaxChunks : chunks;
  }
};

inline LaunchShape aggregate_route_shape(AggregateRouteParams& params, DType type, const DeviceLimits& device) {
  int64_t tasks = 0;
  int shared = kAggregateHead;  // without the ring
  for (int s = 0; s < kScales; ++s) params.tiling[s] = aggregate_tiling(params.maps[s].shape, type);
  for (int s = 0; s < scales_of_row(params.row_index); ++s) {
    tasks += int64_t(params.n) * params.tiling[s].tasks;
    if (!params.gate[s].weight) continue;
    const int needed = lay_out(params.tiling[s], params.gate[s], type);
    shared = needed > shared ? needed : shared;
  }
  const AggregateBlocks fit(tasks, shared, device);
  const int all = shared + fit.chunks * kAggregateChunk;
  for (int s = 0; s < scales_of_row(params.row_index); ++s) {
    AggregateTiling& tiling = params.tiling[s];
    if (params.gate[s].weight) set_ring(tiling, params.gate[s], type, all - kAggregateHead - tiling.ring);
  }
  const int64_t blocks = fit.blocks * device.multiprocessors;
  return {int(tasks < 1 ? 1 : tasks < blocks ? tasks : blocks), kThreads, all};
}

}  // namespace dynroute::cuda
