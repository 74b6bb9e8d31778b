// How `sepconv` is launched, and what host and kernel must agree on.
#pragma once
#include <algorithm>

#include "params.h"

namespace dynroute::cuda {

constexpr int kSepconvThreads = 256;
constexpr int kSepconvWide = 8;       // a tile's pixels in x; in y sepconv_high()
constexpr int kSepconvChannels = 64;  // of a chunk of the input
constexpr int kSepconvEnough = 128;   // work items that fill a device: fewer tiles are split by output channels
constexpr int kSepconvResident = 2;   // blocks of a multiprocessor, by their registers
constexpr int kSepconvStatic = 512;   // bytes of static shared memory, at most

// All below for a storage type of `bytes` bytes.
DYNROUTE_DEVICE_TOO constexpr int sepconv_high(int bytes) { return bytes == 4 ? 4 : 8; }

// Input pixels under a tile's side.
DYNROUTE_DEVICE_TOO constexpr int sepconv_halo(int side, int stride) { return (side - 1) * stride + 3; }

// Output channels of a block of the product; and a chunk of its weights, of which its ring has three.
DYNROUTE_DEVICE_TOO constexpr int sepconv_width(const Matrix& pointwise) { return pointwise.n_pad > 64 ? 128 : 64; }
DYNROUTE_DEVICE_TOO constexpr int sepconv_chunk_bytes(const Matrix& pointwise) { return sepconv_width(pointwise) * 64; }
DYNROUTE_DEVICE_TOO constexpr int sepconv_a_bytes(int k_pad, int bytes) {
  return kSepconvWide * sepconv_high(bytes) * (k_pad * bytes + 16);
}

// Pointwise weights this small stay behind A while a block has items of the same scale; others stream.
DYNROUTE_DEVICE_TOO constexpr bool sepconv_weights_stay(const Matrix& pointwise) {
  return pointwise.k_pad <= 64 && pointwise.n_pad <= 64;
}

// Shared memory: in front the halo's chunks and, afterwards, the ring; behind it A. At stride 1 the halo comes one chunk
// ahead, into two buffers, of which the last chunk has the second; the first, and what is between, is where the ring's
// first two buffers lie, so that their weights come while that chunk is computed. Not at stride 2: more than one chunk
// is rare there, and wide stems shall fit.
DYNROUTE_DEVICE_TOO constexpr bool sepconv_ahead(int stride) { return stride == 1; }
DYNROUTE_DEVICE_TOO constexpr int sepconv_halo_bytes(int stride, int bytes) {
  return sepconv_halo(kSepconvWide, stride) * sepconv_halo(sepconv_high(bytes), stride) * kSepconvChannels * bytes;
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_second(const Matrix& pointwise, int stride, int bytes) {
  if (!sepconv_ahead(stride) || sepconv_weights_stay(pointwise)) return 0;
  const int first = pointwise.k_pad > kSepconvChannels ? sepconv_halo_bytes(stride, bytes) : 0;
  const int ring = 2 * sepconv_chunk_bytes(pointwise);
  return first > ring ? first : ring;
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_front(const Matrix& pointwise, int stride, int bytes) {
  const int halo = sepconv_second(pointwise, stride, bytes) + sepconv_halo_bytes(stride, bytes);
  const int ring = sepconv_weights_stay(pointwise) ? 0 : 3 * sepconv_chunk_bytes(pointwise);
  return halo > ring ? halo : ring;
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_bytes(const SepconvStage& stage, int bytes) {
  const int k_pad = stage.pointwise.k_pad;
  return sepconv_front(stage.pointwise, stage.stride, bytes) + sepconv_a_bytes(k_pad, bytes) +
         (sepconv_weights_stay(stage.pointwise) ? k_pad * 64 * bytes : 0);
}

DYNROUTE_DEVICE_TOO constexpr int sepconv_tiles(const SepconvStage& stage, int bytes) {
  return ceil_div(stage.h_out, sepconv_high(bytes)) * ceil_div(stage.w_out, kSepconvWide);
}

// How many work items share a tile's output channels, in whole blocks, where a scale has `tiles` tiles in all
// samples. Each makes the depthwise anew, so only where a device would have idle multiprocessors otherwise. No bit
// depends on it.
DYNROUTE_DEVICE_TOO constexpr int sepconv_blocks(const Matrix& pointwise) {
  return ceil_div(pointwise.n_pad, sepconv_width(pointwise));
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_parts(int tiles, const Matrix& pointwise) {
  const int wanted = tiles > 0 ? kSepconvEnough / tiles : 1, blocks = sepconv_blocks(pointwise);
  return wanted < 1 ? 1 : wanted < blocks ? wanted : blocks;
}

// Work items of a sample, where `listed` samples are done.
DYNROUTE_DEVICE_TOO constexpr int sepconv_items(const SepconvStage& stage, int listed, int bytes) {
  const int tiles = sepconv_tiles(stage, bytes);
  return tiles * sepconv_parts(listed * tiles, stage.pointwise);
}

inline LaunchShape sepconv_shape(const SepconvParams& params, DType dtype, const DeviceLimits& limits) {
  const int bytes = bytes_of(dtype);
  LaunchShape shape = {0, kSepconvThreads, 0};
  for (const SepconvStage& stage : params.stage) {
    if (!stage.depthwise) continue;
    // the number of items is largest when all samples are open, or when the open ones' tiles are split
    const int tiles = params.n * sepconv_tiles(stage, bytes), blocks = sepconv_blocks(stage.pointwise);
    shape.blocks += std::max(tiles, std::min(tiles * blocks, kSepconvEnough));
    shape.shared = std::max(shape.shared, sepconv_bytes(stage, bytes));
  }
  const int resident =
      std::min(kSepconvResident, limits.shared_per_multiprocessor / (shape.shared + kSepconvStatic + kReservedShared));
  shape.blocks = std::min(shape.blocks, limits.multiprocessors * std::max(resident, 1));
  return shape;
}

}  // namespace dynroute::cuda
