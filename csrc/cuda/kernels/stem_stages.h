// How `stem_stages` is launched, and what host and kernel must agree on.
#pragma once
#include <algorithm>

#include "cell.h"

namespace dynroute::cuda {

constexpr int kStemThreads = 256;
constexpr int kStemStagesResident = 2;                          // blocks of a multiprocessor
constexpr int kStemWide = 8, kStemMidWide = 2 * kStemWide + 1;  // columns of a tile, and of what lies between
constexpr int kStemXWide = kStemMidWide + 2;
constexpr int kStemHead = 32;                 // bytes of shared memory for two tiles' places
constexpr int kStemBands = 3, kStemRun2 = 2;  // runs of a column in stage 1; pixels of one in stage 2

// Rows between the stages: a lane makes a run of cell_run() at once. Rows of a tile: what they suffice for, in whole
// runs of stage 2.
DYNROUTE_DEVICE_TOO constexpr int stem_mid_rows(int channels, int bytes) {
  return kStemBands * cell_run(channels, bytes);
}
DYNROUTE_DEVICE_TOO constexpr int stem_rows(int channels, int bytes) {
  return (stem_mid_rows(channels, bytes) - 1) / 2 / kStemRun2 * kStemRun2;
}

// Shared memory: the head, weights of both stages, then what lies between, then the input.
DYNROUTE_DEVICE_TOO constexpr int stem_stages_bytes(int channels, int bytes) {
  const int rows = stem_mid_rows(channels, bytes);
  return kStemHead + 2 * channels * (channels * bytes + (9 + 1) * int(sizeof(float))) +
         (kStemMidWide * rows + kStemXWide * (rows + 2)) * channels * bytes;
}
DYNROUTE_DEVICE_TOO constexpr int stem_stages_channels(const Matrix& first, const Matrix& second) {
  return cell_channels(first.n > second.n ? first.n : second.n);
}

// Whether both stages should be done in one pass: on tensor cores, up to 64 channels, where a multiprocessor has room
// for two blocks: one loads while the other computes. In float the halo costs more to compute than it spares.
inline bool stem_stages_pay(int width, int c, DType dtype, const DeviceLimits& limits) {
  const int widest = std::max(width, c);
  if (dtype == DType::kFloat || widest > 64) return false;
  const int shared = stem_stages_bytes(cell_channels(widest), bytes_of(dtype));
  return shared <= limits.shared_per_block &&
         kStemStagesResident * (shared + kReservedShared) <= limits.shared_per_multiprocessor;
}

inline LaunchShape stem_stages_shape(StemStagesParams& p, DType dtype, const DeviceLimits& limits) {
  const int channels = stem_stages_channels(p.pointwise[0], p.pointwise[1]), bytes = bytes_of(dtype);
  p.across = divisor(ceil_div(p.w_out, kStemWide)), p.down = divisor(ceil_div(p.h_out, stem_rows(channels, bytes)));
  const int64_t tiles = int64_t(p.n) * p.down * p.across;
  const int shared = stem_stages_bytes(channels, bytes);
  const int fit = std::clamp(limits.shared_per_multiprocessor / (shared + kReservedShared), 1, kStemStagesResident);
  return {int(std::min<int64_t>(tiles, int64_t(fit) * limits.multiprocessors)), kStemThreads, shared};
}

}  // namespace dynroute::cuda
