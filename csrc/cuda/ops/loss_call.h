// upsampled_cross_entropy's call (op_calls.h).
#pragma once
#include "bindings/loss_checks.h"
#include "cuda/kernels/upsampled_loss.h"
#include "op_calls.h"

namespace dynroute::cuda {

// outs: the loss; the gradient, of no samples where it is not wanted.
inline OpCall upsampled_cross_entropy_call(const Device& device, const DeviceLimits& limits, const Tensor& logits,
                                           const Tensor& labels, int64_t factor, const Maybe& weight,
                                           int64_t ignore_index, bool with_gradient) {
  const std::string op = "upsampled_cross_entropy";
  const ScalarType type = check_upsampled_cross_entropy(logits, labels, factor, weight, device);
  const int64_t n = logits.size(0), k = logits.size(1), h = logits.size(2), w = logits.size(3);
  check_size(op + ": logits", n, k, h, w);
  const int64_t out_h = labels.size(1), out_w = labels.size(2);
  require(factor * h <= INT32_MAX / 2 && factor * w <= INT32_MAX / 2,
          op + ": logits: wanted at most 1073741823 full-size rows and columns, got " +
              shape_text(std::vector<int64_t>{factor * h, factor * w}));
  CallBuilder build(device, limits, type);
  UpsampledLossParams p = {};
  p.loss = static_cast<float*>(build.out({}, type));
  void* const gradient = build.out({with_gradient ? n : 0, k, h, w});
  p.gradient = with_gradient ? static_cast<float*>(gradient) : nullptr;
  p.logits = static_cast<const float*>(build.map(logits));
  p.labels = static_cast<const int64_t*>(build.values(labels));
  p.weight = weight ? static_cast<const float*>(build.values(*weight)) : nullptr;
  p.ignore_index = ignore_index;
  p.n = int(n), p.h = int(h), p.w = int(w), p.k = int(k), p.factor = int(factor);
  p.out_h = int(out_h), p.out_w = int(out_w);
  p.tiling = loss_tiling(p.n, p.h, p.w, p.k, p.factor);
  p.partials = static_cast<double*>(build.scratch(p.tiling.tasks * int64_t(sizeof(double))));
  p.arrivals = build.zeros(1);
  build.launch_prepare(op.c_str());
  build.launch(op.c_str(), "upsampled_loss", upsampled_loss_shape, p);
  return build.take();
}

}  // namespace dynroute::cuda
