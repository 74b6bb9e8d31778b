// How `route` is launched.
#pragma once
#include "params_ops.h"

namespace dynroute::cuda {

inline LaunchShape route_shape(const RouteParams&, DType, const DeviceLimits&) { return {1, kThreads, 0}; }

}  // namespace dynroute::cuda
