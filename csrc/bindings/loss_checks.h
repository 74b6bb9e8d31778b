// Checks of upsampled_cross_entropy's arguments, for every device. Labels' values are the kernels' affair.
#pragma once
#include "checks.h"

namespace dynroute {

constexpr int64_t kMostLossFactor = 64;

// Returns the type that it computes in: float32, on the CPU float64 too.
inline ScalarType check_upsampled_cross_entropy(const Tensor& logits, const Tensor& labels, int64_t factor,
                                                const std::optional<Tensor>& weight, const Device& device) {
  const std::string op = "upsampled_cross_entropy";
  const ScalarType type = logits.scalar_type();
  const bool doubles = device.type() == DeviceType::CPU;
  require(type == ScalarType::Float || (doubles && type == ScalarType::Double),
          op + ": logits: wanted float32" + (doubles ? " or float64" : "") + ", got " + name(type));
  check(op + ": logits", logits, type, {-1, -1, -1, -1}, device);
  const int64_t k = logits.size(1), h = logits.size(2), w = logits.size(3);
  require(k > 0 && h > 0 && w > 0,
          op + ": logits: wanted at least one class and a map of at least 1x1, got " + shape_text(logits.sizes()));
  require(factor >= 1 && factor <= kMostLossFactor,
          op + ": factor: wanted 1.." + std::to_string(kMostLossFactor) + ", got " + std::to_string(factor));
  check(op + ": labels", labels, ScalarType::Long, {logits.size(0), -1, -1}, device);
  const auto size_text = [](int64_t rows, int64_t columns) {
    return std::to_string(rows) + "x" + std::to_string(columns);
  };
  require(labels.size(1) <= factor * h && labels.size(2) <= factor * w,
          op + ": labels: wanted at most " + size_text(factor * h, factor * w) + " (logits' size times factor), got " +
              size_text(labels.size(1), labels.size(2)));
  if (weight) check(op + ": weight", *weight, type, {k}, device);
  return type;
}

}  // namespace dynroute
