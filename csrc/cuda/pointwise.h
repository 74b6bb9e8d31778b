// How a pointwise product is cut into work items, for the host that sizes a launch and the device that walks it.
//
// An item is a tile of pixels times some of the blocks of 64 output channels (of 32 where n_pad is no multiple of 64,
// as nothing is computed in vain then). Of k at most a slice lies in shared memory, so that a launch that serves the
// coarse scales' long k too still has several blocks on a multiprocessor. Cuts depend on the shape alone, and never
// touch a sum: each is one chain over all of k.
#pragma once
#include <algorithm>

#include "params.h"

#ifdef __CUDACC__
#define DYNROUTE_BOTH __host__ __device__
#else
#define DYNROUTE_BOTH
#endif

namespace dynroute::cuda {

DYNROUTE_BOTH constexpr int ceil_of(int a, int b) { return (a + b - 1) / b; }

// Output channels of a block.
DYNROUTE_BOTH constexpr int block_width(int n_pad) { return n_pad % 64 == 0 ? 64 : 32; }
// Pixels of a tile, and values of k that it holds at once.
DYNROUTE_BOTH constexpr int tile_pixels(int width, bool is_float) { return (is_float ? 32 : 64) * 64 / width; }
DYNROUTE_BOTH constexpr int tile_slice(int width) { return 2 * width; }

constexpr int kItemsWanted = 256;  // of one map: two for each multiprocessor of a large device

struct Cut {
  int blocks;  // of output channels, per item
  int parts;   // items per tile
};
// tiles: of pixels, of one sample's map.
DYNROUTE_BOTH inline Cut cut(const Matrix& w, int tiles) {
  const int width = block_width(w.n_pad), blocks = w.n_pad / width;
  // A k of several slices is read anew for each block: then nothing is lost by leaving each to another item.
  if (w.k_pad > tile_slice(width)) return {1, blocks};
  const int parts = ceil_of(kItemsWanted, tiles);
  const int each = ceil_of(blocks, parts < blocks ? parts : blocks);
  return {each, ceil_of(blocks, each)};
}

// A block's shared memory: first what gemm.cuh uses, of either width, so that the pixels' slice lies in one place
// whatever the width (threads that begin an item write it while others still read results of the item before).
DYNROUTE_BOTH constexpr int product_bytes(bool is_float) { return is_float ? 12288 : 20480; }
inline int pointwise_shared(const Matrix& w, DType type) {
  const bool is_float = type == DType::kFloat;
  const int width = block_width(w.n_pad), row = std::min(w.k_pad, tile_slice(width)) * (is_float ? 4 : 2) + 16;
  return product_bytes(is_float) + tile_pixels(width, is_float) * row;
}

// Blocks of a launch that walks over `items`: what can be resident.
inline int resident_blocks(int64_t items, int shared, int per_multiprocessor, const DeviceLimits& device) {
  const int fit = device.shared_per_multiprocessor / (shared + 1024);  // the system takes 1 KB of each block
  const int64_t most = int64_t(device.multiprocessors) * std::max(1, std::min(fit, per_multiprocessor));
  return int(std::max<int64_t>(1, std::min(items, most)));
}

}  // namespace dynroute::cuda
