// How `prepare` is launched.
#pragma once
#include <algorithm>

#include "params_ops.h"

namespace dynroute::cuda {

inline LaunchShape prepare_shape(const PrepareParams& p, DType, const DeviceLimits& device) {
  int64_t values = p.open ? p.out_size / 4 : 1;
  for (const PackedMatrix& matrix : p.matrix)
    if (matrix.weight) values = std::max(values, int64_t(matrix.to.n_pad) * matrix.to.k_pad);
  return {int(std::clamp<int64_t>(values / kThreads, 1, 4 * device.multiprocessors)), kThreads, 0};
}

}  // namespace dynroute::cuda
