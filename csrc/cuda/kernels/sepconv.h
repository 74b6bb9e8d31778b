// How `sepconv` is launched, and what host and kernel must agree on.
#pragma once
#include <algorithm>

#include "params.h"

namespace dynroute::cuda {

constexpr int kSepconvThreads = 256;
constexpr int kSepconvWide = 8;       // a tile's pixels in x; in y sepconv_high()
constexpr int kSepconvChannels = 64;  // of a chunk of the input
constexpr int kSepconvResident = 2;   // blocks of a multiprocessor, by their registers
constexpr int kSepconvStatic = 512;   // bytes of static shared memory, at most

// All below for a storage type of `bytes` bytes.
DYNROUTE_DEVICE_TOO constexpr int sepconv_high(int bytes) { return bytes == 4 ? 4 : 8; }

// Input pixels under a tile's side.
DYNROUTE_DEVICE_TOO constexpr int sepconv_halo(int side, int stride) { return (side - 1) * stride + 3; }

// Output channels of a block of the product; and bytes of a chunk of its weights.
DYNROUTE_DEVICE_TOO constexpr int sepconv_width(const Matrix& pointwise) { return pointwise.n_pad > 64 ? 128 : 64; }
DYNROUTE_DEVICE_TOO constexpr int sepconv_chunk_bytes(const Matrix& pointwise) {
  return chunk_bytes(sepconv_width(pointwise));
}
// Pointwise weights this small stay while a block has items of the same scale; others stream.
DYNROUTE_DEVICE_TOO constexpr bool sepconv_weights_stay(const Matrix& pointwise) {
  return pointwise.k_pad <= 64 && pointwise.n_pad <= 64;
}

// Shared memory: A; then room for the halo's chunks, each with its depthwise weights, and, afterwards, the ring, to the
// end of what the launch has, so that items of narrow scales have long rings; at the end weights that stay.
// At stride 1, and where there is room, the halo comes one chunk ahead, into two buffers, of which the last chunk has
// the second, as far back as there is room: the ring's first buffers lie before it, so that their weights come while
// that chunk is computed. Not at stride 2: more than one chunk is rare there, and wide stems shall fit.
DYNROUTE_DEVICE_TOO constexpr int sepconv_a_bytes(int k_pad, int bytes) {
  return kSepconvWide * sepconv_high(bytes) * (k_pad * bytes + 16);
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_staying_bytes(const Matrix& pointwise, int bytes) {
  return sepconv_weights_stay(pointwise) ? pointwise.k_pad * 64 * bytes : 0;
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_halo_pixels(int stride, int bytes) {
  return sepconv_halo(kSepconvWide, stride) * sepconv_halo(sepconv_high(bytes), stride);
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_halo_bytes(int stride, int bytes) {
  return kSepconvChannels * (sepconv_halo_pixels(stride, bytes) * bytes + 9 * int(sizeof(float)));
}
// The room that it takes at least, by one buffer or by two.
DYNROUTE_DEVICE_TOO constexpr int sepconv_least_room(const Matrix& pointwise, int stride, int bytes, bool two) {
  const int halo = sepconv_halo_bytes(stride, bytes), chunk = sepconv_chunk_bytes(pointwise);
  if (sepconv_weights_stay(pointwise)) return halo;
  const int before = pointwise.k_pad > kSepconvChannels && halo > kLeastAhead * chunk ? halo : kLeastAhead * chunk;
  const int needed = two ? before + halo : halo, ring = least_ring_bytes(sepconv_width(pointwise));
  return needed > ring ? needed : ring;
}
// What becomes of `room` bytes.
struct SepconvRoom {
  bool two;    // buffers of the halo
  int second;  // bytes before the second
  int ahead;   // chunks of the ring
};
DYNROUTE_DEVICE_TOO constexpr SepconvRoom sepconv_room(const Matrix& pointwise, int stride, int bytes, int room) {
  if (sepconv_weights_stay(pointwise)) return {false, 0, 0};
  const bool two = stride == 1 && room >= sepconv_least_room(pointwise, stride, bytes, true);
  const int second = two ? (room - sepconv_halo_bytes(stride, bytes)) / 128 * 128 : 0;
  const int chunk = sepconv_chunk_bytes(pointwise), fit = room / chunk - 1;
  const int ahead = two && second / chunk < fit ? second / chunk : fit;
  return {two, second, chunks_ahead(ahead)};
}
// Shared memory of an item: at least, and as much as is of use.
DYNROUTE_DEVICE_TOO constexpr int sepconv_bytes(const SepconvStage& stage, int bytes, bool two = false) {
  return sepconv_a_bytes(stage.pointwise.k_pad, bytes) + sepconv_least_room(stage.pointwise, stage.stride, bytes, two) +
         sepconv_staying_bytes(stage.pointwise, bytes);
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_useful_bytes(const SepconvStage& stage, int bytes) {
  const int longer = (kMostAhead - kLeastAhead) * sepconv_chunk_bytes(stage.pointwise);
  return sepconv_bytes(stage, bytes, stage.stride == 1) + (sepconv_weights_stay(stage.pointwise) ? 0 : longer);
}

DYNROUTE_DEVICE_TOO constexpr int sepconv_tiles(const SepconvStage& stage, int bytes) {
  return ceil_div(stage.h_out, sepconv_high(bytes)) * ceil_div(stage.w_out, kSepconvWide);
}

// How many work items share a tile's output channels, in whole blocks, where a scale has `tiles` tiles in all
// samples. Each makes the depthwise anew, so only where a device would have idle multiprocessors otherwise: `enough`
// items fill it, one for each. No bit depends on it.
DYNROUTE_DEVICE_TOO constexpr int sepconv_blocks(const Matrix& pointwise) {
  return ceil_div(pointwise.n_pad, sepconv_width(pointwise));
}
DYNROUTE_DEVICE_TOO constexpr int sepconv_parts(int tiles, const Matrix& pointwise, int enough) {
  const int wanted = tiles > 0 ? enough / tiles : 1, blocks = sepconv_blocks(pointwise);
  return wanted < 1 ? 1 : wanted < blocks ? wanted : blocks;
}

// Work items of a sample, where `listed` samples are done.
DYNROUTE_DEVICE_TOO constexpr int sepconv_items(const SepconvStage& stage, int listed, int bytes, int enough) {
  const int tiles = sepconv_tiles(stage, bytes);
  return tiles * sepconv_parts(listed * tiles, stage.pointwise, enough);
}

// Shared memory of a block that needs `least`, of which `resident` share a multiprocessor: up to `useful`, if there is.
inline int filled_shared(int least, int useful, int resident, int fixed, const DeviceLimits& limits) {
  const int share = limits.shared_per_multiprocessor / resident - kReservedShared;
  const int room = (std::min(share, limits.shared_per_block) - fixed) / 128 * 128;
  return std::max(least, std::min(useful, room));
}

inline LaunchShape sepconv_shape(SepconvParams& params, DType dtype, const DeviceLimits& limits) {
  params.enough = limits.multiprocessors;
  const int bytes = bytes_of(dtype);
  LaunchShape shape = {0, kSepconvThreads, 0};
  int useful = 0;
  for (const SepconvStage& stage : params.stage) {
    if (!stage.depthwise) continue;
    // the number of items is largest when all samples are open, or when the open ones' tiles are split
    const int tiles = params.n * sepconv_tiles(stage, bytes), blocks = sepconv_blocks(stage.pointwise);
    shape.blocks += std::max(tiles, std::min(tiles * blocks, params.enough));
    shape.shared = std::max(shape.shared, sepconv_bytes(stage, bytes));
    useful = std::max(useful, sepconv_useful_bytes(stage, bytes));
  }
  const int resident = std::max(1, std::min(kSepconvResident, limits.shared_per_multiprocessor /
                                                                  (shape.shared + kSepconvStatic + kReservedShared)));
  shape.shared = filled_shared(shape.shared, useful, resident, kSepconvStatic, limits);
  shape.blocks = std::min(shape.blocks, limits.multiprocessors * resident);
  return shape;
}

}  // namespace dynroute::cuda
