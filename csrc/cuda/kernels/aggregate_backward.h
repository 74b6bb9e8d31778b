// How `aggregate_backward` is launched.
#pragma once
#include <algorithm>

#include "params_ops.h"

namespace dynroute::cuda {

constexpr int kAggregateBackwardResident = 4;  // blocks of a multiprocessor, by their registers
constexpr int kAggregateBackwardRun = 8;       // units of a thread in a task

// Units of a sample: 2 x 2 pixels of the gradient, the pixel of up below them, a 16-byte group of channels. Tasks: what
// a block does at a time; they depend on the shape alone, and so does the order in which the alphas' gradients are
// summed.
DYNROUTE_DEVICE_TOO inline int64_t aggregate_backward_units(const AggregateBackwardParams& p, int value_bytes) {
  return int64_t(ceil_div(p.h, 2)) * ceil_div(p.w, 2) * (p.c / (16 / value_bytes));
}
DYNROUTE_DEVICE_TOO inline int aggregate_backward_tasks(const AggregateBackwardParams& p, int value_bytes) {
  return int(ceil_div(aggregate_backward_units(p, value_bytes), int64_t(kThreads * kAggregateBackwardRun)));
}

inline LaunchShape aggregate_backward_shape(const AggregateBackwardParams& p, DType type, const DeviceLimits& device) {
  const int64_t tasks = int64_t(p.n) * aggregate_backward_tasks(p, bytes_of(type));
  return {int(std::min<int64_t>(tasks, int64_t(device.multiprocessors) * kAggregateBackwardResident)), kThreads, 0};
}

}  // namespace dynroute::cuda
