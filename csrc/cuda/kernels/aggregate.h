// How `aggregate` is launched.
#pragma once
#include <algorithm>

#include "params_ops.h"

namespace dynroute::cuda {

constexpr int kAggregateResident = 4;  // blocks of a multiprocessor, by their registers

// A unit is 2 x 2 pixels, a 16-byte group of channels; a task is one of each of a block's threads.
inline LaunchShape aggregate_shape(AggregateParams& p, DType type, const DeviceLimits& device) {
  p.across = divisor(ceil_div(p.w, 2)), p.groups = divisor(p.c * bytes_of(type) / 16);
  p.tasks = divisor(ceil_div(ceil_div(p.h, 2) * p.across * p.groups, kThreads));
  const int64_t blocks = std::min(int64_t(p.n) * p.tasks, int64_t(device.multiprocessors) * kAggregateResident);
  return {int(blocks), kThreads, 0};
}

}  // namespace dynroute::cuda
