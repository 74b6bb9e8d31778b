// How `gate` is launched: as aggregate_route, of one scale.
#pragma once
#include "aggregate_route.h"
#include "params_ops.h"

namespace dynroute::cuda {

// Tasks of a sample: their number depends on shape and type alone.
constexpr AggregateTiling gate_tiling(const GateParams& p, DType type) {
  return aggregate_tiling({p.h, p.w, p.c}, type);
}

inline LaunchShape gate_shape(GateParams& p, DType type, const DeviceLimits& device) {
  const AggregateTiling tiling = p.tiling = gate_tiling(p, type);
  const int shared = aggregate_shared(p.gate, tiling, type) + kMinChunks * kAggregateChunk;
  const int fit = std::max(1, device.shared_per_multiprocessor / (shared + kReservedShared));
  const int64_t resident = int64_t(device.multiprocessors) * std::min(fit, kAggregateBlocks);
  return {int(std::min(int64_t(p.n) * tiling.tasks, resident)), kThreads, shared};
}

}  // namespace dynroute::cuda
