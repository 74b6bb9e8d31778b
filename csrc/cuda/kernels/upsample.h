// How the host launches upsample.cu.
#pragma once
#include <algorithm>

#include "pointwise.h"

namespace dynroute::cuda {

constexpr int kUpsampleLines = 4, kUpsampleColumns = 32;  // of a tile of small pixels: a warp per line
constexpr int kUpsampleClasses = 32;                      // in shared memory at once

// Floats from pixel to pixel of a tile: odd, so that a warp that reads one class of 32 pixels has no bank conflicts.
DYNROUTE_DEVICE_TOO constexpr int upsample_pitch(int classes) {
  return (classes < kUpsampleClasses ? classes : kUpsampleClasses) | 1;
}

// Small pixels that a tile's neighbour along the line is away. Where lines of planes do not begin at multiples of 16
// bytes, a lane's stores take values of the lane to the right: the last one has no such, and the next tile begins
// there.
DYNROUTE_DEVICE_TOO constexpr int upsample_step(int out_w) {
  return out_w % 4 == 0 ? kUpsampleColumns : kUpsampleColumns - 1;
}

// Tiles across that have something to write.
constexpr int upsample_across(int out_w) { return ceil_div(ceil_div(out_w, 4), upsample_step(out_w)); }
constexpr int upsample_down(int out_h) { return ceil_div(out_h, 4 * kUpsampleLines); }

// A block for each tile; the same whatever the storage type.
inline LaunchShape upsample_shape(UpsampleParams& params, DType, const DeviceLimits&) {
  params.across = divisor(upsample_across(params.out_w));
  params.tiles = divisor(upsample_down(params.out_h) * params.across);
  const int pixels = (kUpsampleLines + 2) * (kUpsampleColumns + 2);
  return {params.n * params.tiles, kThreads, pixels * upsample_pitch(params.classes) * int(sizeof(float))};
}

}  // namespace dynroute::cuda
