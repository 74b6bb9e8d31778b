// How `aggregate_backward` is launched.
#pragma once
#include <algorithm>

#include "params_ops.h"

namespace dynroute::cuda {

constexpr int kAggregateBackwardResident = 4;  // blocks of a multiprocessor, by their registers
constexpr int kAggregateBackwardRun = 8;       // units of a thread in a task

// Tasks of a sample: a task is kAggregateBackwardRun units of each of a block's threads; a unit is 2 x 2 pixels of the
// gradient, the pixel of up below them, a 16-byte group of channels. They depend on the shape alone, and so does the
// order in which the alphas' gradients are summed.
inline int aggregate_backward_tasks(const AggregateBackwardParams& p, int value_bytes) {
  const int units = ceil_div(p.h, 2) * ceil_div(p.w, 2) * (p.c * value_bytes / 16);
  return ceil_div(units, kThreads * kAggregateBackwardRun);
}

inline LaunchShape aggregate_backward_shape(AggregateBackwardParams& p, DType type, const DeviceLimits& device) {
  p.across = divisor(ceil_div(p.w, 2)), p.groups = divisor(p.c * bytes_of(type) / 16);
  p.tasks = divisor(aggregate_backward_tasks(p, bytes_of(type)));
  const int64_t tasks = int64_t(p.n) * p.tasks;
  return {int(std::min<int64_t>(tasks, int64_t(device.multiprocessors) * kAggregateBackwardResident)), kThreads, 0};
}

}  // namespace dynroute::cuda
