// How `aggregate` is launched, and what host and device have to agree on.
#pragma once
#include "params.h"

namespace dynroute::cuda {

// X is made in tiles of 4x4 blocks of pixels: 8 x 8 pixels, or 4 x 8 of floats, which are what gemm.cuh's A holds.
constexpr int kAggregateTileWidth = 8;
DYNROUTE_DEVICE_TOO constexpr int aggregate_tile_height(DType type) { return type == DType::kFloat ? 4 : 8; }

// A work item, or task, is a run of a sample's tiles; each leaves one row of n_pad partial sums. At most this many sums
// are left to the one block that adds them up: it reads 32 KB.
constexpr int kPartialSums = 8192;

struct AggregateTiling {
  int tiles_x = 0, tiles = 0, run = 0, tasks = 0;  // tiles in a row, in all, of a task (the last may have fewer)
};
// Depends on shape and type alone: so does, then, the order in which a gate's mean is summed up.
DYNROUTE_DEVICE_TOO constexpr AggregateTiling aggregate_tiling(int h, int w, int c, DType type) {
  const int height = aggregate_tile_height(type), n_pad = (c / 2 + 31) / 32 * 32;
  if (h == 0 || w == 0 || c == 0) return {};  // a scale that is not there
  const int tiles_x = (w + kAggregateTileWidth - 1) / kAggregateTileWidth;
  const int tiles = tiles_x * ((h + height - 1) / height);
  const int most = n_pad < kPartialSums ? kPartialSums / n_pad : 1;
  const int run = (tiles + most - 1) / most;
  return {tiles_x, tiles, run, (tiles + run - 1) / run};
}

// Floats that partials[s] needs for n samples.
inline int64_t aggregate_partials(const Level& level, int n_pad, int n, DType type) {
  return int64_t(n) * aggregate_tiling(level.h, level.w, level.c, type).tasks * n_pad;
}

// Shared memory, in bytes: a ring of three chunks of weights, A, the gate's shift and a task's sums by rows of warps.
constexpr int kAggregateRing = 3 * 64 * 16 * 4;
constexpr int kAggregateRoute = 4096;  // what reducing and routing use of the same memory, at least
constexpr int aggregate_warp_rows(DType type) { return type == DType::kFloat ? 4 : 2; }
inline int aggregate_shared(const Matrix& gate, DType type) {
  const bool is_float = type == DType::kFloat;
  const int pixels = is_float ? 32 : 64, row = is_float ? 4 * (gate.k_pad + 4) : 2 * (gate.k_pad + 8);
  return kAggregateRing + pixels * row + (1 + aggregate_warp_rows(type)) * gate.n_pad * int(sizeof(float));
}

constexpr int kAggregateBlocks = 4;  // of a multiprocessor at once, by registers

inline LaunchShape aggregate_shape(const AggregateParams& params, DType type, const DeviceLimits& device) {
  int64_t tasks = 0;
  int shared = kAggregateRoute;
  for (int s = 0; s < scales_of_row(params.row_index); ++s) {
    const Level& level = params.level[s];
    tasks += int64_t(params.n) * aggregate_tiling(level.h, level.w, level.c, type).tasks;
    if (!params.gate[s].weight) continue;
    const int needed = aggregate_shared(params.gate[s], type);
    shared = needed > shared ? needed : shared;
  }
  const int reserved = 1024;  // by the system, per block
  const int fit = device.shared_per_multiprocessor / (shared + reserved);
  const int at_once = device.multiprocessors * (fit < 1 ? 1 : fit < kAggregateBlocks ? fit : kAggregateBlocks);
  return {tasks < 1 ? 1 : tasks < at_once ? int(tasks) : at_once, kThreads, shared};
}

}  // namespace dynroute::cuda
