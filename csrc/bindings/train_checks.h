// Checks of the training operators' arguments that every device shares.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "contract/geometry.h"
#include "op_checks.h"

namespace dynroute {

constexpr int kMean = 0, kInvstd = 1, kVariance = 2, kStatistics = 3;  // of a BatchNorm's rows of `stats`

// What a call's tensors are made of: maps of x's type, the rest of `weight`.
struct TrainTypes {
  ScalarType map, weight;
  ScalarType raw;  // of raw outputs
  Device device;
  int channels;  // of maps that a product makes: a multiple of it
};

// On the CPU all is of one type, float32 or float64, but for raw outputs that are kept narrow.
inline TrainTypes train_types_on_cpu(const std::string& op, const Tensor& x, bool narrow) {
  const Device cpu(DeviceType::CPU);
  check_device(op + ": x", x, cpu);
  const ScalarType type = check_floating(op + ": x", x);
  require(!narrow || type == ScalarType::Float, op + ": narrow: wanted float32 maps, got " + name(type));
  return {type, type, narrow ? ScalarType::BFloat16 : type, cpu, 4};
}
// On a GPU maps are float32, float16 or bfloat16, and the rest float32. Tensors of the emulator's calls are on the CPU.
inline TrainTypes train_types_on_gpu(const std::string& op, const Tensor& x, bool narrow, const Device& device) {
  const ScalarType type = check_type(op + ": x", x, {device, true, 8});
  require(!narrow, op + ": narrow: wanted False on CUDA, where maps may be of 16 bits themselves");
  return {type, ScalarType::Float, type, device, 8};
}

inline void check_input(const std::string& op, const Tensor& x, const TrainTypes& types) {
  check(op + ": x", x, types.map, {-1, -1, -1, -1}, types.device);
  check_channels(op + ": x", x.size(1), 8);
  require(x.size(2) > 0 && x.size(3) > 0, op + ": x: wanted a map of at least 1x1, got " + shape_text(x.sizes()));
}
inline void check_open(const std::string& op, const std::optional<Tensor>& open, int64_t n, const TrainTypes& types) {
  if (open) check(op + ": open", *open, ScalarType::Bool, {n}, types.device);
}
inline void check_wanted(const std::string& op, const std::vector<bool>& wanted, size_t count) {
  require(wanted.size() == count,
          op + ": wanted: wanted " + std::to_string(count) + " booleans, got " + std::to_string(wanted.size()));
}

// x and the stages' weights. `more`: how many BatchNorms follow the stages' own in the lists.
inline void check_stages(const std::string& op, const Tensor& x, const std::vector<Tensor>& depthwise,
                         const std::vector<Tensor>& pointwise, const std::vector<const std::vector<Tensor>*>& norms,
                         const TrainTypes& types, int64_t stride, size_t more = 0) {
  check_input(op, x, types);
  check_stride(op, stride);
  const size_t stages = depthwise.size();
  require(stages >= 1 && stages <= kMostStages,
          op + ": depthwise: wanted 1 to 3 stages, got " + std::to_string(stages));
  require(pointwise.size() == stages, op + ": pointwise: wanted as many as depthwise (" + std::to_string(stages) +
                                          "), got " + std::to_string(pointwise.size()));
  int64_t c = x.size(1);
  for (size_t k = 0; k < stages; ++k) {
    const std::string at = "[" + std::to_string(k) + "]";
    check(op + ": depthwise" + at, depthwise[k], types.weight, {c, 1, 3, 3}, types.device);
    check(op + ": pointwise" + at, pointwise[k], types.weight, {k == 0 ? -1 : c, c, 1, 1}, types.device);
    c = pointwise[k].size(0);
    check_channels(op + ": pointwise" + at, c, 8);
    for (const auto* list : norms) {
      require(list->size() == stages + more, op + ": gamma, beta, running_mean, running_var: wanted as many as " +
                                                 (more ? "convolutions (" : "depthwise (") +
                                                 std::to_string(stages + more) + ")");
      check(op + ": gamma, beta, running_mean, running_var" + at, (*list)[k], types.weight, {c}, types.device);
    }
  }
}

inline void check_residual(const std::string& op, const Tensor& x, const std::vector<Tensor>& pointwise, int64_t stride,
                           bool residual) {
  const int64_t c = pointwise.back().size(0);
  require(!residual || (stride == 1 && c == x.size(1)),
          op + ": residual: wanted an output of x's shape (stride 1, " + std::to_string(x.size(1)) +
              " channels), got stride " + std::to_string(stride) + ", " + std::to_string(c) + " channels");
}

// What a chain's backward is given of its forward. `maps`: the output's N, C, H, W.
inline void check_chain_backward(const std::string& op, const Tensor& grad, const Tensor& raw, const Tensor& stats,
                                 const std::vector<int64_t>& maps, int64_t stages, const TrainTypes& types) {
  check(op + ": grad", grad, types.map, {maps[0], maps[1], maps[2], maps[3]}, types.device);
  check(op + ": raw", raw, types.raw, {stages * maps[0], maps[1], maps[2], maps[3]}, types.device);
  check(op + ": stats", stats, types.weight, {stages, kStatistics, maps[1]}, types.device);
}

inline void check_product(const std::string& op, const char* what, const Tensor& weight, int64_t c,
                          const TrainTypes& types) {
  check(op + ": " + what, weight, types.weight, {-1, c, 1, 1}, types.device);
  check_channels(op + ": " + what, weight.size(0), types.channels);
}

inline void check_transform_train(const std::string& op, const Tensor& x, const Tensor& weight,
                                  const std::vector<Tensor>& norms, const TrainTypes& types, int64_t stride) {
  check_input(op, x, types);
  check_stride(op, stride);
  check_product(op, "weight", weight, x.size(1), types);
  for (const Tensor& norm : norms)
    check(op + ": gamma, beta, running_mean, running_var", norm, types.weight, {weight.size(0)}, types.device);
}

inline void check_gate_train(const std::string& op, const Tensor& x, const Tensor& weight,
                             const std::vector<Tensor>& norms, const Tensor& fc_weight,
                             const std::vector<int64_t>& columns, bool small, const TrainTypes& types) {
  check(op + ": x", x, types.map, {-1, -1, -1, -1}, types.device);
  check_channels(op + ": x", x.size(1), 8);
  const int64_t smallest = small ? 4 : 1;
  require(x.size(2) >= smallest && x.size(3) >= smallest,
          op + ": x: wanted a map of at least " + std::to_string(smallest) + "x" + std::to_string(smallest) + ", got " +
              shape_text(x.sizes()));
  check_product(op, "weight", weight, x.size(1), types);
  for (const Tensor& norm : norms)
    check(op + ": gamma, beta, running_mean, running_var", norm, types.weight, {weight.size(0)}, types.device);
  check(op + ": fc_weight", fc_weight, types.weight, {-1, weight.size(0), 1, 1}, types.device);
  bool used[kPaths] = {}, good = !columns.empty();
  for (const int64_t column : columns) {
    good = good && column >= 0 && column < kPaths && !used[column];
    if (good) used[column] = true;
  }
  require(good, op + ": columns: wanted one to three different ones of 0, 1, 2, got " + shape_text(columns));
  require(fc_weight.size(0) == int64_t(columns.size()), op + ": columns: wanted one for each of the " +
                                                            std::to_string(fc_weight.size(0)) +
                                                            " rows of fc_weight, got " + shape_text(columns));
}

constexpr int kPooledRows = 3;  // of a gate's pool
inline void check_gate_train_backward(const std::string& op, const Tensor& grad, const Tensor& alphas,
                                      const Tensor& raw, const Tensor& stats, const Tensor& pool,
                                      const std::vector<int64_t>& maps /* N, C, H, W of raw */,
                                      const TrainTypes& types) {
  check(op + ": grad", grad, types.weight, {maps[0], kPaths}, types.device);
  check(op + ": alphas", alphas, types.weight, {maps[0], kPaths}, types.device);
  check(op + ": raw", raw, types.raw, {maps[0], maps[1], maps[2], maps[3]}, types.device);
  check(op + ": stats", stats, types.weight, {1, kStatistics, maps[1]}, types.device);
  check(op + ": pool", pool, types.weight, {maps[0], kPooledRows, maps[1]}, types.device);
}

// The tensors that a node's weights come in; the running statistics in forward alone.
struct NodeTensors {
  const std::vector<Tensor>&depthwise, &pointwise;
  const std::optional<Tensor>&up, &down;
  const std::vector<Tensor>&gamma, &beta;
  const std::vector<Tensor>*running_mean, *running_var;
  int stages() const { return int(depthwise.size()); }
  int up_c() const { return up ? int(up->size(0)) : 0; }  // 0: there is no such path
  int down_c() const { return down ? int(down->size(0)) : 0; }
  // Values of `stats`, and where a path's begin.
  int64_t up_statistics() const { return int64_t(kStatistics) * stages() * pointwise[0].size(0); }
  int64_t down_statistics() const { return up_statistics() + kStatistics * int64_t(up_c()); }
  int64_t statistics() const { return down_statistics() + kStatistics * int64_t(down_c()); }
};

inline void check_node_train(const std::string& op, const Tensor& x, const Tensor& alphas, const NodeTensors& t,
                             const std::optional<Tensor>& factor, double bridge, const TrainTypes& types) {
  const size_t paths = size_t(t.up.has_value()) + size_t(t.down.has_value()), stages = t.depthwise.size();
  std::vector<const std::vector<Tensor>*> norms = {&t.gamma, &t.beta};
  if (t.running_mean) norms.push_back(t.running_mean), norms.push_back(t.running_var);
  check_stages(op, x, t.depthwise, t.pointwise, norms, types, 1, paths);
  const int64_t n = x.size(0), c = x.size(1);
  require(t.pointwise.back().size(0) == c, op + ": pointwise: wanted " + std::to_string(c) + " output channels, got " +
                                               std::to_string(t.pointwise.back().size(0)));
  check(op + ": alphas", alphas, types.weight, {n, kPaths}, types.device);
  const auto check_path = [&](const char* what, const std::optional<Tensor>& weight, size_t norm) {
    if (!weight) return;
    check_product(op, what, *weight, c, types);
    for (const auto* list : norms)
      check(op + ": gamma, beta, running_mean, running_var[" + std::to_string(norm) + "]", (*list)[norm], types.weight,
            {weight->size(0)}, types.device);
  };
  check_path("up", t.up, stages), check_path("down", t.down, stages + paths - 1);
  if (factor) check(op + ": factor", *factor, types.weight, {n}, types.device);
  require(bridge >= 0, op + ": bridge: wanted 0 or more, got " + std::to_string(bridge));
}

inline void check_node_train_backward(const std::string& op, const Tensor& x, const NodeTensors& t,
                                      const std::optional<Tensor>& grad_keep, const std::optional<Tensor>& grad_up,
                                      const std::optional<Tensor>& grad_down, const Tensor& raw, const Tensor& up_raw,
                                      const Tensor& down_raw, const Tensor& stats, const TrainTypes& types) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  const int64_t down_h = strided(int(h), 2), down_w = strided(int(w), 2);
  if (grad_keep) check(op + ": grad_keep", *grad_keep, types.map, {n, c, h, w}, types.device);
  if (grad_up) check(op + ": grad_up", *grad_up, types.map, {n, t.up_c(), h, w}, types.device);
  if (grad_down) check(op + ": grad_down", *grad_down, types.map, {n, t.down_c(), down_h, down_w}, types.device);
  check(op + ": raw", raw, types.raw, {t.stages() * n, c, h, w}, types.device);
  if (t.up) check(op + ": up_raw", up_raw, types.raw, {n, t.up_c(), h, w}, types.device);
  if (t.down) check(op + ": down_raw", down_raw, types.raw, {n, t.down_c(), down_h, down_w}, types.device);
  check(op + ": stats", stats, types.weight, {t.statistics()}, types.device);
}

}  // namespace dynroute
