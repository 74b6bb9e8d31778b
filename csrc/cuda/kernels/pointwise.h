// How a pointwise product is cut into work items, for the host that sizes a launch and the device that walks it.
//
// An item is a tile of pixels times some of the blocks of output channels. Of k at most a slice lies in shared memory,
// so that a launch that serves the coarse scales' long k too still has several blocks on a multiprocessor. Cuts depend
// on shape and device, and never touch a sum: each is one chain over all of k.
#pragma once
#include <algorithm>

#include "params.h"

namespace dynroute::cuda {

// Tiles of pixels x output channels: 64 x 64 in 16-bit types, 128 x 32 where n_pad is no multiple of 64, so that
// nothing is computed in vain; 64 x 32 in float, where a thread's 4 x 4 needs fewer reads of shared memory than 2 x 8.
struct PointwiseTile {
  int width, pixels, slice;  // output channels; pixels; values of k that lie in shared memory at once
};
DYNROUTE_DEVICE_TOO constexpr PointwiseTile pointwise_tile(const Matrix& w, bool is_float) {
  if (is_float) return {32, 64, 128};
  return w.n_pad % 64 == 0 ? PointwiseTile{64, 64, 128} : PointwiseTile{32, 128, 64};
}

// tiles: of pixels, of one sample's map. A map's items shall be two for each multiprocessor.
inline Cut cut(const Matrix& w, const PointwiseTile& tile, int tiles, const DeviceLimits& device) {
  const int blocks = ceil_div(w.n_pad, tile.width);
  // A k of several slices is read anew for each block: then nothing is lost by leaving each to another item.
  if (w.k_pad > tile.slice) return {tile.width, divisor(blocks)};
  const int parts = ceil_div(2 * device.multiprocessors, tiles < 1 ? 1 : tiles);
  const int each = ceil_div(blocks, parts < blocks ? parts : blocks);
  return {each * tile.width, divisor(ceil_div(blocks, each))};
}

// A block's shared memory: first the ring of weights, three chunks, then the pixels' slice.
DYNROUTE_DEVICE_TOO constexpr int pixel_bytes(const Matrix& w, const PointwiseTile& tile, bool is_float) {
  return (w.k_pad < tile.slice ? w.k_pad : tile.slice) * (is_float ? 4 : 2) + 16;
}
inline int pointwise_shared(const Matrix& w, const PointwiseTile& tile, bool is_float) {
  return least_ring_bytes(tile.width) + tile.pixels * pixel_bytes(w, tile, is_float);
}

// Blocks of a launch that walks over `items`: what can be resident.
inline int resident_blocks(int64_t items, int shared, int per_multiprocessor, const DeviceLimits& device) {
  const int fit = device.shared_per_multiprocessor / (shared + kReservedShared);
  const int64_t largest = int64_t(device.multiprocessors) * std::max(1, std::min(fit, per_multiprocessor));
  return int(std::max<int64_t>(1, std::min(items, largest)));
}

}  // namespace dynroute::cuda
