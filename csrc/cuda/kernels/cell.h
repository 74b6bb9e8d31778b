// The fused cell's tiles and launch, for the host and the kernel alike.
//
// A tile is 16 columns wide. Its rows come in bands: in stage 1 a lane makes `run` pixels of a column at once, so stage
// 1 makes run * bands rows of 18 columns, of which stage 2 makes run * bands - 2 rows of 16 columns. How many bands
// there are follows from the shared memory that the launch was given and the number of warps, by the same function on
// both sides; results do not depend on it.
#pragma once
#include <algorithm>

#include "params.h"

namespace dynroute::cuda {

constexpr int kCellWidth = 16;             // columns of a tile
constexpr int kMidWidth = kCellWidth + 2;  // of what lies between the stages
constexpr int kXWidth = kCellWidth + 4;
constexpr int kCellMaxThreads = 512;  // with 128 registers each: the register file, as one block or as two of half
constexpr int kCellHead = 256;        // bytes of shared memory for two descriptions of tiles

// The channels that a tile is made for: 32, 64 or 128; those beyond the true ones are zeros.
DYNROUTE_DEVICE_TOO constexpr int cell_channels(int c) { return c <= 32 ? 32 : c <= 64 ? 64 : 128; }
// Pixels of a column that a lane makes at once: in stage 1 as many as its registers hold; in stage 2 what cuts tiles of
// 16 rows into a unit for each of 8 warps.
DYNROUTE_DEVICE_TOO constexpr int cell_run(int channels, int value_bytes) {
  return channels > 64 || value_bytes > 2 ? 4 : 6;
}
constexpr int kCellRun2 = 4;

// Shared memory of a block: weights of both stages, and per tile X and what lies between the stages.
DYNROUTE_DEVICE_TOO constexpr int cell_bytes(int channels, int value_bytes, int bands) {
  const int rows = cell_run(channels, value_bytes) * bands;
  return kCellHead + 2 * channels * (channels * value_bytes + (9 + 1) * int(sizeof(float))) +
         (kXWidth * (rows + 2) + kMidWidth * rows) * channels * value_bytes;
}
// The bands of a tile: what `shared` bytes hold, at most what gives each warp one unit (8 runs) of each stage, at most
// the map.
DYNROUTE_DEVICE_TOO constexpr int cell_bands(int channels, int value_bytes, int shared, int threads, int h) {
  const int run = cell_run(channels, value_bytes), one = cell_bytes(channels, value_bytes, 1);
  const int more = cell_bytes(channels, value_bytes, 2) - one, warps = threads / 32;
  const int fit = shared < one ? 0 : 1 + (shared - one) / more, map = ceil_div(h + 2, run);
  const int first = warps * 8 / kMidWidth, second = (warps * 8 / kCellWidth * kCellRun2 + 2) / run;
  const int busy = first < second ? first : second, largest = busy < map ? busy : map;
  return fit < largest ? fit : largest;
}

struct CellTiling {
  int bands, rows, across, total;  // rows of a tile's outputs, tiles in a row of tiles, in a map
};
DYNROUTE_DEVICE_TOO inline CellTiling cell_tiling(const MapShape& map, int value_bytes, int shared, int threads) {
  const int channels = cell_channels(map.c);
  CellTiling tiling = {};
  tiling.bands = cell_bands(channels, value_bytes, shared, threads, map.h);
  tiling.rows = cell_run(channels, value_bytes) * tiling.bands - 2;
  tiling.across = ceil_div(map.w, kCellWidth);
  tiling.total = tiling.rows > 0 ? tiling.across * ceil_div(map.h, tiling.rows) : 0;
  return tiling;
}

// Whether scales of c channels can be fused: float up to 64, 16-bit types up to 128 channels where memory allows. The
// widest scale of a launch decides the shared memory of all its blocks.
inline bool cell_fits(int c, DType dtype, const DeviceLimits& limits) {
  const int value_bytes = bytes_of(dtype), channels = cell_channels(c);
  if (c < 8 || c % 8 || c > (dtype == DType::kFloat ? 64 : 128)) return false;
  return cell_bytes(channels, value_bytes, 1) <= limits.shared_per_block;
}

// Two blocks of 256 threads per multiprocessor, so that one loads while the other computes, where each has the memory
// for tiles of two bands; else one of 512.
constexpr int kAnyHeight = 1 << 20;  // a map that no tile is too high for
struct CellBlocks {
  int blocks, threads, shared;  // per multiprocessor; per block; bytes of memory that it may have
};
inline CellBlocks cell_blocks(int channels, int value_bytes, const DeviceLimits& limits) {
  const int half = std::min(limits.shared_per_multiprocessor / 2 - kReservedShared, limits.shared_per_block);
  if (cell_bands(channels, value_bytes, half, kCellMaxThreads / 2, kAnyHeight) >= 2)
    return {2, kCellMaxThreads / 2, half};
  return {1, kCellMaxThreads, limits.shared_per_block};
}

// Whether they should be. On tensor cores up to 64 channels the halo costs less to compute than what lies between the
// stages to store and read again (measured on an H100). Else a tile has to be large enough: float computes on CUDA
// cores, for much longer, so stage 1 may make less than 1.35 times the pixels that are wanted; 128 channels leave one
// block to a multiprocessor, which a sample's tiles have to fill: then 1.4 times pay (an H100 at 1024 x 2048: 7% of the
// network).
inline bool cell_pays(const MapShape& map, DType dtype, const DeviceLimits& limits) {
  if (!cell_fits(map.c, dtype, limits)) return false;
  if (map.c <= (dtype == DType::kFloat ? 32 : 64)) return true;
  const int channels = cell_channels(map.c), bytes = bytes_of(dtype);
  const CellBlocks block = cell_blocks(channels, bytes, limits);
  const int made = cell_run(channels, bytes) * cell_bands(channels, bytes, block.shared, block.threads, kAnyHeight);
  const bool large = made * kMidWidth < (map.c > 64 ? 1.4 : 1.35) * (made - 2) * kCellWidth;
  return large && (map.c <= 64 || cell_tiling(map, bytes, block.shared, block.threads).total >= limits.multiprocessors);
}

inline LaunchShape cell_shape(const CellParams& p, DType dtype, const DeviceLimits& limits) {
  const int value_bytes = bytes_of(dtype);
  int widest = 0;
  for (int s = 0; s < kScales; ++s)
    if (p.depthwise[s][0]) widest = std::max(widest, cell_channels(p.maps[s].shape.c));
  if (!widest) return {0, kCellMaxThreads, 0};
  const CellBlocks block = cell_blocks(widest, value_bytes, limits);
  LaunchShape shape = {0, block.threads, 0};
  int64_t tiles = 0;
  for (int s = 0; s < kScales; ++s) {
    if (!p.depthwise[s][0]) continue;
    const int channels = cell_channels(p.maps[s].shape.c);
    const int bands = cell_bands(channels, value_bytes, block.shared, shape.threads, p.maps[s].shape.h);
    shape.shared = std::max(shape.shared, cell_bytes(channels, value_bytes, bands));
    tiles += int64_t(p.n) * cell_tiling(p.maps[s].shape, value_bytes, block.shared, shape.threads).total;
  }
  shape.blocks = int(std::min<int64_t>(tiles, limits.multiprocessors * block.blocks));
  return shape;
}

}  // namespace dynroute::cuda
