// How `stage_paths` is launched, and what host and kernel must agree on.
#pragma once
#include "pointwise.h"
#include "sepconv.h"

namespace dynroute::cuda {

constexpr int kStagePathsResident = 2;  // blocks of a multiprocessor, by their registers
constexpr int kStagePathsStatic = 768;  // bytes of static shared memory, at most

// An item's tile: 64 x 128, or 128 x 64 where there are no 128 channels; float: 64 x 64 there.
DYNROUTE_DEVICE_TOO constexpr PointwiseTile path_tile(const Matrix& w, bool is_float) {
  if (w.n_pad > 64) return {128, 64, is_float ? 256 : 512};
  return is_float ? PointwiseTile{64, 64, 256} : PointwiseTile{64, 128, 256};
}
DYNROUTE_DEVICE_TOO constexpr int path_a_bytes(const Matrix& w, bool is_float) {
  const PointwiseTile tile = path_tile(w, is_float);
  return tile.pixels * pixel_bytes(w, tile, is_float);
}

// Output pixels of a path.
DYNROUTE_DEVICE_TOO inline int path_pixels(const MapShape& map, bool down) {
  return down ? map.h / 2 * (map.w / 2) : map.h * map.w;
}
// One sample's.
inline PathCut path_cut(const Matrix& w, const MapShape& map, bool down, bool is_float, const DeviceLimits& device) {
  const int pixels = path_pixels(map, down);
  if (!w.weight || pixels == 0) return {};
  const PointwiseTile tile = path_tile(w, is_float);
  const int tiles = ceil_div(pixels, tile.pixels);
  const Cut part = cut(w, tile, tiles, device);
  return {tiles * part.parts, part};
}

inline LaunchShape stage_paths_shape(StagePathsParams& params, DType type, const DeviceLimits& device) {
  const bool is_float = type == DType::kFloat;
  int64_t items = sepconv_shape(params.cells, type, device).blocks;  // all, or more than there will be room for below
  int shared = 0;
  for (const SepconvStage& stage : params.cells.stage)
    if (stage.depthwise) shared = std::max(shared, sepconv_bytes(stage, bytes_of(type)));
  for (int s = 0; s < kScales; ++s) {
    params.half_w[s] = divisor(params.cells.maps[s].shape.w / 2);
    for (bool down : {false, true}) {
      const Matrix& w = down ? params.down[s] : params.up[s];
      PathCut& cut = params.cuts[down][s] = path_cut(w, params.cells.maps[s].shape, down, is_float, device);
      if (cut.of_sample == 0) continue;
      items += int64_t(params.cells.n) * cut.of_sample;
      const PointwiseTile tile = path_tile(w, is_float);
      shared = std::max(shared, least_ring_bytes(tile.width) + path_a_bytes(w, is_float));
    }
  }
  // no more memory than is needed: longer rings are no faster here, as paths have few chunks (measured on an H100)
  return {resident_blocks(items, shared + kStagePathsStatic, kStagePathsResident, device), kSepconvThreads, shared};
}

}  // namespace dynroute::cuda
