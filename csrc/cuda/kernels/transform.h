// How `transform` is launched, and what host and kernel must agree on.
#pragma once
#include "params_ops.h"
#include "pointwise.h"

namespace dynroute::cuda {

constexpr int kTransformResident = 4;  // blocks of a multiprocessor, by their registers

inline LaunchShape transform_shape(TransformParams& p, DType type, const DeviceLimits& device) {
  const bool is_float = type == DType::kFloat;
  const PointwiseTile tile = pointwise_tile(p.weight, is_float);
  const int tiles = ceil_div(p.h_out * p.w_out, tile.pixels), shared = pointwise_shared(p.weight, tile, is_float);
  p.part = cut(p.weight, tile, tiles, device);
  p.items = divisor(tiles * p.part.parts), p.across = divisor(p.w_out);
  return {resident_blocks(int64_t(p.n) * p.items, shared, kTransformResident, device), kThreads, shared};
}

}  // namespace dynroute::cuda
