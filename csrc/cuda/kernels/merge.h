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
// The coarse pixels that a tile mixes from: half of it, and a border.
DYNROUTE_DEVICE_TOO constexpr int merge_coarse_pixels(const PointwiseTile& tile) {
  return (tile.pixels / kMergeTileWidth / 2 + 2) * (kMergeTileWidth / 2 + 2);
}

inline LaunchShape merge_shape(MergeParams& params, DType type, const DeviceLimits& device) {
  const bool is_float = type == DType::kFloat;
  const PointwiseTile tile = merge_tile(params.weight, is_float);
  params.across = divisor(ceil_div(params.maps.shape.w, kMergeTileWidth));
  params.tiles = divisor(ceil_div(params.maps.shape.h, tile.pixels / kMergeTileWidth) * params.across);
  params.part = cut(params.weight, tile, params.tiles, device);
  const int64_t items = int64_t(params.n) * params.tiles * params.part.parts;
  int shared = pointwise_shared(params.weight, tile, is_float);
  if (params.coarse) shared += merge_coarse_pixels(tile) * pixel_bytes(params.weight, tile, is_float);
  return {resident_blocks(items, shared, kMergeResident, device), kThreads, shared};
}

}  // namespace dynroute::cuda
