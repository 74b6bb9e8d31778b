// How `prepare` is launched.
#pragma once
#include <algorithm>

#include "params_ops.h"

namespace dynroute::cuda {

inline LaunchShape prepare_shape(PrepareParams& p, DType type, const DeviceLimits& device) {
  int64_t values = p.open ? p.out_size / 4 : 1;
  for (PackedMatrix& matrix : p.matrix) {
    if (!matrix.weight) continue;
    values = std::max(values, int64_t(matrix.to.n_pad) * matrix.to.k_pad);
    matrix.row = divisor(type == DType::kFloat ? matrix.to.n_pad : matrix.to.k_pad);
  }
  for (PackedDepthwise& taps : p.depthwise) taps.channels = divisor(std::max(taps.c, 1));
  return {int(std::clamp<int64_t>(values / kThreads, 1, 4 * device.multiprocessors)), kThreads, 0};
}

}  // namespace dynroute::cuda
