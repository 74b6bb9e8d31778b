// How `sepconv` is launched, and what host and kernel must agree on.
#pragma once
#include <algorithm>

#include "params.h"

#ifdef __CUDACC__
#define DYNROUTE_BOTH __host__ __device__
#else
#define DYNROUTE_BOTH
#endif

namespace dynroute::cuda {

constexpr int kSepconvWide = 8;          // a tile's pixels in x; in y sepconv_high()
constexpr int kSepconvChannels = 64;     // of a chunk of the input
constexpr int kSepconvEnough = 128;      // work items that fill a device: fewer tiles are split by output channels
constexpr int kSepconvResident = 4;      // blocks of a multiprocessor, by their registers
constexpr int kSepconvSmall = 99 << 10;  // shared memory that every device grants a block

// All below for a storage type of `bytes` bytes.
DYNROUTE_BOTH constexpr int sepconv_high(int bytes) { return bytes == 4 ? 4 : 8; }

// Input pixels under a tile's side.
DYNROUTE_BOTH constexpr int sepconv_halo(int side, int stride) { return (side - 1) * stride + 3; }

DYNROUTE_BOTH constexpr int sepconv_gemm_bytes(int bytes) { return bytes == 4 ? 12288 : 18432; }
DYNROUTE_BOTH constexpr int sepconv_a_bytes(int k_pad, int bytes) {
  return kSepconvWide * sepconv_high(bytes) * (k_pad * bytes + 16);
}

// Shared memory: first the halo's chunks or, afterwards, what the product needs; then A. Two chunks where that pays and
// fits.
struct SepconvMemory {
  int chunk, buffers, front, total;
};
DYNROUTE_BOTH constexpr SepconvMemory sepconv_memory(int k_pad, int stride, int bytes) {
  SepconvMemory memory = {};
  memory.chunk =
      sepconv_halo(kSepconvWide, stride) * sepconv_halo(sepconv_high(bytes), stride) * kSepconvChannels * bytes;
  const int a = sepconv_a_bytes(k_pad, bytes);
  memory.buffers = k_pad > kSepconvChannels && 2 * memory.chunk + a <= kSepconvSmall ? 2 : 1;
  const int halo = memory.buffers * memory.chunk, gemm = sepconv_gemm_bytes(bytes);
  memory.front = halo > gemm ? halo : gemm;
  memory.total = memory.front + a;
  return memory;
}

DYNROUTE_BOTH constexpr int sepconv_tiles(const SepconvStage& stage, int bytes) {
  return ((stage.h_out + sepconv_high(bytes) - 1) / sepconv_high(bytes)) *
         ((stage.w_out + kSepconvWide - 1) / kSepconvWide);
}

// How many work items share a tile's output channels, in whole blocks of 64, where a scale has `tiles` tiles in all
// samples. Each makes the depthwise anew, so only where a device would have idle multiprocessors otherwise. No bit
// depends on it.
DYNROUTE_BOTH constexpr int sepconv_parts(int tiles, int n_pad) {
  const int wanted = tiles > 0 ? kSepconvEnough / tiles : 1, blocks = (n_pad + 63) / 64;
  return wanted < 1 ? 1 : wanted < blocks ? wanted : blocks;
}

inline LaunchShape sepconv_shape(const SepconvParams& params, DType dtype, const DeviceLimits& limits) {
  const int bytes = dtype == DType::kFloat ? 4 : 2;
  LaunchShape shape = {0, kThreads, 0};
  for (const SepconvStage& stage : params.stage) {
    if (!stage.depthwise) continue;
    // the number of items is largest when all samples are open, or when the open ones' tiles are split
    const int tiles = params.n * sepconv_tiles(stage, bytes), blocks = (stage.pointwise.n_pad + 63) / 64;
    shape.blocks += std::max(tiles, std::min(tiles * blocks, kSepconvEnough));
    shape.shared = std::max(shape.shared, sepconv_memory(stage.pointwise.k_pad, stage.stride, bytes).total);
  }
  const int resident = std::min(kSepconvResident, limits.shared_per_multiprocessor / (shape.shared + 1024));
  shape.blocks = std::min(shape.blocks, limits.multiprocessors * std::max(resident, 1));
  return shape;
}

}  // namespace dynroute::cuda
