// How `stem_planes` is launched, and what host and kernel must agree on.
#pragma once
#include "params.h"

namespace dynroute::cuda {

constexpr int kPlanesHigh = 2;       // a tile's pixels in y; in x planes_wide()
constexpr int kPlanesTaps = 64;      // of k, that are in shared memory at a time
constexpr int kPlanesChannels = 64;  // output channels that are multiplied at a time

// All below for a storage type of `bytes` bytes.
DYNROUTE_DEVICE_TOO constexpr int planes_wide(int bytes) { return bytes == 4 ? 16 : 32; }
DYNROUTE_DEVICE_TOO constexpr int planes_a_bytes(int bytes) {
  return kPlanesHigh * planes_wide(bytes) * (kPlanesTaps * bytes + 16);
}

inline LaunchShape stem_planes_shape(StemPlanesParams& params, DType dtype, const DeviceLimits&) {
  const int bytes = bytes_of(dtype);
  params.of_tap = divisor(params.planes);
  params.across = divisor(ceil_div(params.w_out, planes_wide(bytes)));
  params.down = divisor(ceil_div(params.h_out, kPlanesHigh));
  return {params.n * params.down * params.across, kThreads,
          planes_a_bytes(bytes) + kPlanesChannels * kPlanesTaps * bytes};
}

}  // namespace dynroute::cuda
