// Checks that the training operators made of stages share.
#pragma once
#include <string>
#include <vector>

#include "bindings/checks.h"

namespace dynroute {

// x and the stages' weights. `more`: how many BatchNorms follow the stages' own in the lists.
inline void check_stages(const std::string& op, const Tensor& x, const std::vector<Tensor>& depthwise,
                         const std::vector<Tensor>& pointwise, const std::vector<const std::vector<Tensor>*>& norms,
                         ScalarType type, int64_t stride, size_t more = 0) {
  check(op + ": x", x, type, {-1, -1, -1, -1});
  check_channels(op + ": x", x.size(1), 8);
  require(x.size(2) > 0 && x.size(3) > 0, op + ": x: wanted a map of at least 1x1, got " + shape_text(x.sizes()));
  require(stride == 1 || stride == 2, op + ": stride: wanted 1 or 2, got " + std::to_string(stride));
  const size_t stages = depthwise.size();
  require(stages >= 1 && stages <= 3, op + ": depthwise: wanted 1 to 3 stages, got " + std::to_string(stages));
  require(pointwise.size() == stages, op + ": pointwise: wanted as many as depthwise (" + std::to_string(stages) +
                                          "), got " + std::to_string(pointwise.size()));
  int64_t c = x.size(1);
  for (size_t k = 0; k < stages; ++k) {
    const std::string at = "[" + std::to_string(k) + "]";
    check(op + ": depthwise" + at, depthwise[k], type, {c, 1, 3, 3});
    check(op + ": pointwise" + at, pointwise[k], type, {k == 0 ? -1 : c, c, 1, 1});
    c = pointwise[k].size(0);
    check_channels(op + ": pointwise" + at, c, 8);
    for (const auto* list : norms) {
      require(list->size() == stages + more, op + ": gamma, beta, running_mean, running_var: wanted as many as " +
                                                 (more ? "convolutions (" : "depthwise (") +
                                                 std::to_string(stages + more) + ")");
      check(op + ": gamma, beta, running_mean, running_var" + at, (*list)[k], type, {c});
    }
  }
}

}  // namespace dynroute
