// Checks of the operators' arguments that every device shares; what a device takes beside float32 it says itself.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "contract/space.h"

namespace dynroute {

// A device's own: where tensors have to be, and what they may be made of.
struct OpRules {
  Device device;
  bool halves;   // beside float32 it takes float16 and bfloat16; else float64
  int channels;  // of outputs: a multiple of it
};

inline ScalarType check_type(const std::string& what, const Tensor& tensor, const OpRules& rules) {
  check_device(what, tensor, rules.device);
  const ScalarType type = tensor.scalar_type();
  const bool is_half = type == ScalarType::Half || type == ScalarType::BFloat16;
  require(type == ScalarType::Float || (rules.halves ? is_half : type == ScalarType::Double),
          what + ": wanted float32" + (rules.halves ? ", float16 or bfloat16" : " or float64") + ", got " + name(type));
  return type;
}
inline ScalarType check_map(const std::string& what, const Tensor& tensor, const OpRules& rules) {
  const ScalarType type = check_type(what, tensor, rules);
  check(what, tensor, type, {-1, -1, -1, -1}, rules.device);
  require(tensor.size(2) > 0 && tensor.size(3) > 0,
          what + ": wanted a map of at least 1x1, got " + shape_text(tensor.sizes()));
  return type;
}

inline void check_stride(const std::string& op, int64_t stride) {
  require(stride == 1 || stride == 2, op + ": stride: wanted 1 or 2, got " + std::to_string(stride));
}

inline void check_mask(const std::string& what, const std::optional<Tensor>& mask, int64_t n, const OpRules& rules) {
  if (mask) check(what, *mask, ScalarType::Bool, {n}, rules.device);
}

constexpr size_t kMostStages = 3;

// Returns the type that it computes in.
inline ScalarType check_sepconv(const Tensor& x, const std::vector<Tensor>& depthwise,
                                const std::vector<Tensor>& pointwise, const std::vector<Tensor>& scale,
                                const std::vector<Tensor>& shift, const std::optional<Tensor>& open, int64_t stride,
                                bool residual, const OpRules& rules) {
  const auto indexed = [](const char* what, size_t k) {
    return "sepconv: " + std::string(what) + "[" + std::to_string(k) + "]";
  };
  const ScalarType type = check_map("sepconv: x", x, rules);
  check_channels("sepconv: x", x.size(1), 8);
  check_stride("sepconv", stride);
  const size_t stages = depthwise.size();
  require(stages >= 1 && stages <= kMostStages,
          "sepconv: depthwise: wanted 1 to " + std::to_string(kMostStages) + " stages, got " + std::to_string(stages));
  require(pointwise.size() == stages && scale.size() == stages && shift.size() == stages,
          "sepconv: pointwise, scale, shift: wanted as many as depthwise (" + std::to_string(stages) + "), got " +
              std::to_string(pointwise.size()) + ", " + std::to_string(scale.size()) + ", " +
              std::to_string(shift.size()));
  int64_t c = x.size(1);
  for (size_t k = 0; k < stages; ++k) {
    check(indexed("depthwise", k), depthwise[k], type, {c, 1, 3, 3}, rules.device);
    check(indexed("pointwise", k), pointwise[k], type, {-1, c, 1, 1}, rules.device);
    c = pointwise[k].size(0);
    check_channels(indexed("pointwise", k), c, 8);
    check(indexed("scale", k), scale[k], type, {c}, rules.device);
    check(indexed("shift", k), shift[k], type, {c}, rules.device);
  }
  require(!residual || (stride == 1 && c == x.size(1)),
          "sepconv: residual: wanted an output of x's shape (stride 1, " + std::to_string(x.size(1)) +
              " channels), got stride " + std::to_string(stride) + ", " + std::to_string(c) + " channels");
  check_mask("sepconv: open", open, x.size(0), rules);
  return type;
}

inline ScalarType check_transform(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                                  const std::optional<Tensor>& open, int64_t stride, const OpRules& rules) {
  const ScalarType type = check_map("transform: x", x, rules);
  check_channels("transform: x", x.size(1), 8);
  check_stride("transform", stride);
  check("transform: weight", weight, type, {-1, x.size(1), 1, 1}, rules.device);
  check_channels("transform: weight", weight.size(0), rules.channels);
  check("transform: scale", scale, type, {weight.size(0)}, rules.device);
  check("transform: shift", shift, type, {weight.size(0)}, rules.device);
  check_mask("transform: open", open, x.size(0), rules);
  return type;
}

inline ScalarType check_gate(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                             const Tensor& fc_weight, const Tensor& fc_bias, bool small,
                             const std::optional<Tensor>& present, const OpRules& rules) {
  const ScalarType type = check_map("gate: x", x, rules);
  check_channels("gate: x", x.size(1), 8);
  const int64_t smallest = small ? 4 : 1;  // a pixel of the map that the gate sees
  require(x.size(2) >= smallest && x.size(3) >= smallest,
          "gate: x: wanted a map of at least " + std::to_string(smallest) + "x" + std::to_string(smallest) + ", got " +
              shape_text(x.sizes()));
  const int64_t channels = weight.size(0);
  check("gate: weight", weight, type, {-1, x.size(1), 1, 1}, rules.device);
  check("gate: scale", scale, type, {channels}, rules.device);
  check("gate: shift", shift, type, {channels}, rules.device);
  check("gate: fc_weight", fc_weight, type, {-1, channels, 1, 1}, rules.device);
  check("gate: fc_bias", fc_bias, type, {fc_weight.size(0)}, rules.device);
  check_mask("gate: present", present, x.size(0), rules);
  return type;
}

inline Activation parse_activation(const std::string& op, const std::string& name) {
  for (const Activation known : {Activation::kTanh, Activation::kSigmoid, Activation::kSoftmax})
    if (name == kActivationNames[int(known)]) return known;
  throw std::runtime_error(op + ": activation: wanted 'tanh', 'sigmoid' or 'softmax', got '" + name + "'");
}

inline ScalarType check_route(const Tensor& alphas, const Tensor& present, const Tensor& path_exists,
                              const Tensor& slots, const OpRules& rules) {
  const ScalarType type = check_type("route: alphas", alphas, rules);
  check("route: alphas", alphas, type, {-1, kScales, kPaths}, rules.device);
  const int64_t n = alphas.size(0);
  check("route: present", present, ScalarType::Bool, {n, kScales}, rules.device);
  check("route: path_exists", path_exists, ScalarType::Bool, {kScales, kPaths}, rules.device);
  check("route: slots", slots, ScalarType::Int, {n, kScales}, rules.device);
  return type;
}

// What an aggregate makes: [n, c, h, w] of `type`.
struct AggregateShape {
  ScalarType type;
  int64_t n, c, h, w;
};
inline AggregateShape check_aggregate(const std::optional<Tensor>& down, const std::optional<Tensor>& keep,
                                      const std::optional<Tensor>& up, const std::optional<Tensor>& alphas,
                                      const OpRules& rules) {
  const std::optional<Tensor>& first = down ? down : keep ? keep : up;
  require(first.has_value(), "aggregate: down, keep, up: wanted at least one source, got none");
  const char* name = down ? "aggregate: down" : keep ? "aggregate: keep" : "aggregate: up";
  const ScalarType type = check_map(name, *first, rules);
  const int factor = down || keep ? 1 : 2;
  const int64_t n = first->size(0), c = first->size(1), h = first->size(2) * factor, w = first->size(3) * factor;
  check_channels("aggregate: sources", c, rules.channels);
  if (alphas) check("aggregate: alphas", *alphas, type, {n, kPaths}, rules.device);
  if (keep) check("aggregate: keep", *keep, type, {n, c, h, w}, rules.device);
  if (up) {
    require(h % 2 == 0 && w % 2 == 0,
            "aggregate: up: wanted an output of even size, got " + std::to_string(h) + "x" + std::to_string(w));
    check("aggregate: up", *up, type, {n, c, h / 2, w / 2}, rules.device);
  }
  return {type, n, c, h, w};
}

constexpr int kOfDown = 0, kOfKeep = 1, kOfUp = 2, kOfAlphas = 3, kGradients = 4;  // of `wanted`
inline ScalarType check_aggregate_backward(const Tensor& grad, const std::optional<Tensor>& down,
                                           const std::optional<Tensor>& keep, const std::optional<Tensor>& up,
                                           const std::optional<Tensor>& alphas, const std::vector<bool>& wanted,
                                           const OpRules& rules) {
  const std::string op = "aggregate_backward";
  const ScalarType type = check_map(op + ": grad", grad, rules);
  const int64_t n = grad.size(0), c = grad.size(1), h = grad.size(2), w = grad.size(3);
  check_channels(op + ": grad", c, rules.channels);
  require(wanted.size() == kGradients, op + ": wanted: wanted 4 booleans, got " + std::to_string(wanted.size()));
  require(alphas || !wanted[kOfAlphas], op + ": alphas: wanted a tensor where their gradient is, got none");
  if (alphas) check(op + ": alphas", *alphas, type, {n, kPaths}, rules.device);
  if (down) check(op + ": down", *down, type, {n, c, h, w}, rules.device);
  if (keep) check(op + ": keep", *keep, type, {n, c, h, w}, rules.device);
  if (up || wanted[kOfUp])
    require(h % 2 == 0 && w % 2 == 0,
            op + ": grad: wanted an even size for up, got " + std::to_string(h) + "x" + std::to_string(w));
  if (up) check(op + ": up", *up, type, {n, c, h / 2, w / 2}, rules.device);
  return type;
}

}  // namespace dynroute
