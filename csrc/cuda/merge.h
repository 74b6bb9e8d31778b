// How the host launches merge.cu.
#pragma once
#include "pointwise.h"

namespace dynroute::cuda {

constexpr int kMergeResident = 4;   // blocks per multiprocessor that merge.cu's registers allow
constexpr int kMergeTileWidth = 8;  // pixels

// Tiles of a sample's map: 8 pixels wide.
DYNROUTE_BOTH inline int merge_tiles(const Level& level, const PointwiseTile& tile) {
  return ceil_of(level.h, tile.pixels / kMergeTileWidth) * ceil_of(level.w, kMergeTileWidth);
}

inline LaunchShape merge_shape(const MergeParams& params, DType type, const DeviceLimits& device) {
  const PointwiseTile tile = pointwise_tile(params.weight, type == DType::kFloat);
  const int tiles = merge_tiles(params.level, tile), shared = pointwise_shared(params.weight, type);
  const int64_t items = int64_t(params.n) * tiles * cut(params.weight, tile, tiles).parts;
  return {resident_blocks(items, shared, kMergeResident, device), kThreads, shared};
}

}  // namespace dynroute::cuda
