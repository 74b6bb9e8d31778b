// How `begin` is launched.
#pragma once
#include "params.h"

namespace dynroute::cuda {

constexpr int kBeginValues = 8;  // that a thread writes before another block is worth its launch

inline LaunchShape begin_shape(const BeginParams& params, DType, const DeviceLimits& device) {
  const int64_t nodes = int64_t(params.n) * params.rows * kScales;
  const int64_t values = nodes * (kPaths + 5) + params.counter_count;
  const int64_t blocks = (values + kThreads * kBeginValues - 1) / (kThreads * kBeginValues);
  return {blocks < device.multiprocessors ? int(blocks) : device.multiprocessors, kThreads, 0};
}

}  // namespace dynroute::cuda
