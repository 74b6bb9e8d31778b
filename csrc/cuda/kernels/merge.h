// How the host launches merge.cu.
#pragma once
#include "pointwise.h"

namespace dynroute::cuda {

constexpr int kMergeResident = 4;   // blocks per multiprocessor that merge.cu's registers allow
constexpr int kMergeTileWidth = 8;  // pixels

// Only one scale's k has to fit, so the slice may be longer than where all scales share a launch.
DYNROUTE_DEVICE_TOO constexpr PointwiseTile merge_tile(const Matrix& w, bool is_float) {
  const PointwiseTile tile = pointwise_tile(w, is_float);
  return {tile.width, tile.pixels, is_float ? tile.slice : 2 * tile.slice};
}
// Tiles of a sample's map, 8 pixels wide; and the coarse pixels that a tile mixes from: half of it, and a border.
DYNROUTE_DEVICE_TOO inline int merge_tiles(const MapShape& map, const PointwiseTile& tile) {
  return ceil_div(map.h, tile.pixels / kMergeTileWidth) * ceil_div(map.w, kMergeTileWidth);
}
DYNROUTE_DEVICE_TOO constexpr int merge_coarse_pixels(const PointwiseTile& tile) {
  return (tile.pixels / kMergeTileWidth / 2 + 2) * (kMergeTileWidth / 2 + 2);
}

inline LaunchShape merge_shape(const MergeParams& params, DType type, const DeviceLimits& device) {
  const bool is_float = type == DType::kFloat;
  const PointwiseTile tile = merge_tile(params.weight, is_float);
  const int tiles = merge_tiles(params.maps.shape, tile);
  const int64_t items = int64_t(params.n) * tiles * cut(params.weight, tile, tiles).parts;
  int shared = pointwise_shared(params.weight, tile, is_float);
  if (params.coarse) shared += merge_coarse_pixels(tile) * pixel_bytes(params.weight, tile, is_float);
  return {resident_blocks(items, shared, kMergeResident, device), kThreads, shared};
}

}  // namespace dynroute::cuda
