// How `transform` is launched, and what host and kernel must agree on.
#pragma once
#include "params_ops.h"
#include "pointwise.h"

namespace dynroute::cuda {

constexpr int kTransformResident = 4;  // blocks of a multiprocessor, by their registers

DYNROUTE_DEVICE_TOO inline int transform_items(const TransformParams& p, bool is_float) {
  const PointwiseTile tile = pointwise_tile(p.weight, is_float);
  const int tiles = ceil_div(p.h_out * p.w_out, tile.pixels);
  return tiles * cut(p.weight, tile, tiles).parts;
}

inline LaunchShape transform_shape(const TransformParams& p, DType type, const DeviceLimits& device) {
  const bool is_float = type == DType::kFloat;
  const int shared = pointwise_shared(p.weight, pointwise_tile(p.weight, is_float), is_float);
  const int64_t items = int64_t(p.n) * transform_items(p, is_float);
  return {resident_blocks(items, shared, kTransformResident, device), kThreads, shared};
}

}  // namespace dynroute::cuda
