// How `init_call` is launched.
#pragma once
#include "params.h"

namespace dynroute::cuda {

constexpr int kInitCallValues = 8;  // that a thread writes before another block is worth its launch

inline LaunchShape init_call_shape(const InitCallParams& params, DType, const DeviceLimits& device) {
  const int64_t nodes = int64_t(params.n) * params.rows * kScales;
  const int64_t values = nodes * (kPaths + kNodeParts) + params.counter_count;
  const int64_t blocks = ceil_div(values, kThreads * kInitCallValues);
  return {blocks < device.multiprocessors ? int(blocks) : device.multiprocessors, kThreads, 0};
}

}  // namespace dynroute::cuda
