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

// Output channels of a block of the product, where `n` are left; and its ring or results.
DYNROUTE_DEVICE_TOO constexpr int sepconv_width(int n) { return n > 64 ? 128 : 64; }
DYNROUTE_DEVICE_TOO constexpr int sepconv_gemm_bytes(int n, int bytes) {
  return n > 64 ? (bytes == 4 ? 24576 : 32768) : (bytes == 4 ? 12288 : 16384);
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_a_bytes(int k_pad, int bytes) {
  return kSepconvWide * sepconv_high(bytes) * (k_pad * bytes + 16);
}

// Buffers of the halo: one chunk ahead, but not at stride 2: more than one chunk is rare there, and wide stems shall
// fit.
DYNROUTE_DEVICE_TOO constexpr int sepconv_buffers(int stride) { return stride == 1 ? 2 : 1; }

// Shared memory: in front the halo's chunks and, afterwards, what the product needs; behind it A.
DYNROUTE_DEVICE_TOO constexpr int sepconv_front(const Matrix& pointwise, int stride, int bytes) {
  const int pixels = sepconv_halo(kSepconvWide, stride) * sepconv_halo(sepconv_high(bytes), stride);
  const int halo = pixels * kSepconvChannels * bytes * (pointwise.k_pad > kSepconvChannels ? sepconv_buffers(stride) : 1);
  const int product = sepconv_gemm_bytes(pointwise.n_pad, bytes);
  return halo > product ? halo : product;
}
// Pointwise weights this small stay behind A while a block has items of the same scale; others stream.
DYNROUTE_DEVICE_TOO constexpr bool sepconv_weights_stay(const Matrix& pointwise) {
  return pointwise.k_pad <= 64 && pointwise.n_pad <= 64;
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_bytes(const SepconvStage& stage, int bytes) {
  const int k_pad = stage.pointwise.k_pad;
  return sepconv_front(stage.pointwise, stage.stride, bytes) + sepconv_a_bytes(k_pad, bytes) +
         (sepconv_weights_stay(stage.pointwise) ? k_pad * 64 * bytes : 0);
}

DYNROUTE_DEVICE_TOO constexpr int sepconv_tiles(const SepconvStage& stage, int bytes) {
  return ceil_div(stage.h_out, sepconv_high(bytes)) * ceil_div(stage.w_out, kSepconvWide);
}

// How many work items share a tile's output channels, in whole blocks of 64, where a scale has `tiles` tiles in all
// samples. Each makes the depthwise anew, so only where a device would have idle multiprocessors otherwise. No bit
// depends on it.
DYNROUTE_DEVICE_TOO constexpr int sepconv_parts(int tiles, int n_pad) {
  const int wanted = tiles > 0 ? kSepconvEnough / tiles : 1, blocks = ceil_div(n_pad, 64);
  return wanted < 1 ? 1 : wanted < blocks ? wanted : blocks;
}

// Work items of a sample, where `listed` samples are done.
DYNROUTE_DEVICE_TOO constexpr int sepconv_items(const SepconvStage& stage, int listed, int bytes) {
  const int tiles = sepconv_tiles(stage, bytes);
  return tiles * sepconv_parts(listed * tiles, stage.pointwise.n_pad);
}

inline LaunchShape sepconv_shape(const SepconvParams& params, DType dtype, const DeviceLimits& limits) {
  const int bytes = bytes_of(dtype);
  LaunchShape shape = {0, kSepconvThreads, 0};
  for (const SepconvStage& stage : params.stage) {
    if (!stage.depthwise) continue;
    // the number of items is largest when all samples are open, or when the open ones' tiles are split
    const int tiles = params.n * sepconv_tiles(stage, bytes), blocks = ceil_div(stage.pointwise.n_pad, 64);
    shape.blocks += std::max(tiles, std::min(tiles * blocks, kSepconvEnough));
    shape.shared = std::max(shape.shared, sepconv_bytes(stage, bytes));
  }
  const int resident =
      std::min(kSepconvResident, limits.shared_per_multiprocessor / (shape.shared + kSepconvStatic + kReservedShared));
  shape.blocks = std::min(shape.blocks, limits.multiprocessors * std::max(resident, 1));
  return shape;
}

}  // namespace dynroute::cuda
