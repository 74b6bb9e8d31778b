// How `aggregate` is launched.
#pragma once
#include <algorithm>

#include "params_ops.h"

namespace dynroute::cuda {

constexpr int kAggregateResident = 4;  // blocks of a multiprocessor, by their registers

// Units of a sample: 2 x 2 pixels, a 16-byte group of channels.
DYNROUTE_DEVICE_TOO inline int64_t aggregate_units(const AggregateParams& p, int value_bytes) {
  return int64_t(ceil_div(p.h, 2)) * ceil_div(p.w, 2) * (p.c / (16 / value_bytes));
}

inline LaunchShape aggregate_shape(const AggregateParams& p, DType type, const DeviceLimits& device) {
  const int64_t blocks = ceil_div(p.n * aggregate_units(p, bytes_of(type)), int64_t(kThreads));
  return {int(std::min<int64_t>(blocks, int64_t(device.multiprocessors) * kAggregateResident)), kThreads, 0};
}

}  // namespace dynroute::cuda
