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
  AggregateTiling& tiling = p.tiling = gate_tiling(p, type);
  const int shared = lay_out(tiling, p.gate, type);
  const int64_t tasks = int64_t(p.n) * tiling.tasks;
  const AggregateBlocks fit(tasks, shared, device);
  const int ring = fit.chunks * kAggregateChunk;
  set_ring(tiling, p.gate, type, ring);
  return {int(std::min(tasks, fit.blocks * device.multiprocessors)), kThreads, shared + ring};
}

}  // namespace dynroute::cuda
