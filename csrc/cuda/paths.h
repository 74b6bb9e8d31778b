// How the host launches paths.cu.
#pragma once
#include "pointwise.h"

namespace dynroute::cuda {

constexpr int kPathsResident = 5;  // blocks per multiprocessor that paths.cu's registers allow

// Tiles of one sample's path, of true pixels; 0 where there is none.
DYNROUTE_BOTH inline int path_tiles(const Matrix& w, const Level& level, bool down, bool is_float) {
  if (!w.weight) return 0;
  const int pixels = down ? level.h / 2 * (level.w / 2) : level.h * level.w;
  return ceil_of(pixels, tile_pixels(block_width(w.n_pad), is_float));
}

inline LaunchShape paths_shape(const PathsParams& params, DType type, const DeviceLimits& device) {
  int64_t items = 0;
  int shared = 0;
  for (int s = 0; s < kScales; ++s)
    for (bool down : {false, true}) {
      const Matrix& w = down ? params.down[s] : params.up[s];
      const int tiles = path_tiles(w, params.level[s], down, type == DType::kFloat);
      if (tiles == 0) continue;
      items += int64_t(params.n) * tiles * cut(w, tiles).parts;
      shared = std::max(shared, pointwise_shared(w, type));
    }
  return {resident_blocks(items, shared, kPathsResident, device), kThreads, shared};
}

}  // namespace dynroute::cuda
