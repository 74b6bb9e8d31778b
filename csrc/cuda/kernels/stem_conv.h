// How `stem_conv` is launched, and what host and kernel must agree on.
#pragma once
#include <algorithm>

#include "params.h"

namespace dynroute::cuda {

constexpr int kStemHigh = 2;      // a tile's pixels in y; in x stem_wide()
constexpr int kStemResident = 6;  // blocks of a multiprocessor, by their registers

// All below for a storage type of `bytes` bytes.
DYNROUTE_DEVICE_TOO constexpr int stem_wide(int bytes) { return bytes == 4 ? 16 : 32; }

// The images under a tile and the next one, as floats [2][planes][5 rows][even columns, then odd ones, then a gap: two
// rows are 16 banks apart where a warp has pixels of both].
constexpr int kStemPlanes = 3, kStemInputs = 9 * kStemPlanes, kStemRows = 2 * kStemHigh + 1;
DYNROUTE_DEVICE_TOO constexpr int stem_columns(int bytes) { return 2 * stem_wide(bytes) + 1; }
DYNROUTE_DEVICE_TOO constexpr int stem_image_row(int bytes) { return bytes == 4 ? 40 : stem_columns(bytes); }
DYNROUTE_DEVICE_TOO constexpr int stem_image_bytes(int bytes) {
  return round_up(2 * kStemPlanes * kStemRows * stem_image_row(bytes) * int(sizeof(float)), 16);
}
DYNROUTE_DEVICE_TOO constexpr int stem_a_bytes(int bytes) {
  return kStemHigh * stem_wide(bytes) * (padded(kStemInputs) * bytes + 16);
}

inline LaunchShape stem_conv_shape(StemConvParams& params, DType dtype, const DeviceLimits& limits) {
  const int bytes = bytes_of(dtype), wide = stem_wide(bytes);
  const int weights = round_up(params.weight.n_pad, 64) * padded(kStemInputs) * bytes;
  LaunchShape shape = {0, kThreads, 0};
  shape.shared = stem_a_bytes(bytes) + stem_image_bytes(bytes) + weights;
  const int resident = std::min(kStemResident, limits.shared_per_multiprocessor / (shape.shared + kReservedShared));
  params.across = divisor(ceil_div(params.w_out, wide)), params.down = divisor(ceil_div(params.h_out, kStemHigh));
  const int tiles = params.n * params.down * params.across;
  shape.blocks = std::min(tiles, limits.multiprocessors * std::max(resident, 1));
  return shape;
}

}  // namespace dynroute::cuda
