// How the host launches predictor.cu.
#pragma once
#include "pointwise.h"

namespace dynroute::cuda {

constexpr int kPredictorColumns = 16;  // of a tile of pixels
DYNROUTE_DEVICE_TOO constexpr int predictor_lines(bool is_float) { return is_float ? 4 : 8; }

// Values from pixel to pixel of a tile: a 16-byte group of zeros behind the channels, or two, as an odd number of
// groups keeps ldmatrix free of bank conflicts.
DYNROUTE_DEVICE_TOO constexpr int predictor_pitch(int c, int vector) { return ((c / vector + 1) | 1) * vector; }

// The ring of weights, or results of 32 classes.
DYNROUTE_DEVICE_TOO constexpr int predictor_ring_bytes(bool is_float) { return is_float ? 8448 : 16896; }
// Bytes of dynamic shared memory: the ring or the results, the tile with its border, and a table of k's groups.
inline int predictor_shared(const PredictorParams& params, DType type) {
  const bool is_float = type == DType::kFloat;
  const int size = is_float ? 4 : 2, vector = 16 / size;
  const int border = (predictor_lines(is_float) + 2) * (kPredictorColumns + 2);
  return predictor_ring_bytes(is_float) + border * predictor_pitch(params.c, vector) * size +
         params.weight.k_pad / vector * 4;
}

// A block for each tile. All channels of a tile lie in shared memory: up to 232 (16-bit) or 200 (float) where a block
// has 99 KB; the host has to refuse more than fit.
inline LaunchShape predictor_shape(PredictorParams& params, DType type, const DeviceLimits&) {
  params.across = divisor(ceil_div(params.w, kPredictorColumns));
  params.tiles = divisor(ceil_div(params.h, predictor_lines(type == DType::kFloat)) * params.across);
  params.groups = divisor(params.c * bytes_of(type) / 16);
  return {params.n * params.tiles, kThreads, predictor_shared(params, type)};
}

}  // namespace dynroute::cuda
