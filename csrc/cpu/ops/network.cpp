// The whole network: check, size, allocate, run.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "bind.h"
#include "bindings/network_checks.h"
#include "cpu/kernels/memory.h"
#include "cpu/network/engine.h"

namespace dynroute {
namespace {

int64_t workspace_op(int64_t n, int64_t h, int64_t w, std::vector<int64_t> config) {
  const NetworkConfig parsed = parse_config(config, "network_workspace");
  check_size("network_workspace", parsed, h, w);
  return NetworkSizes(parsed, int(n), int(h), int(w), TorchParallel().threads()).floats;
}

Tensor buffer_op(int64_t floats) {
  require(floats >= 0, "network_buffer: floats: wanted 0 or more, got " + std::to_string(floats));
  Tensor buffer = new_tensor({floats}, ScalarType::Float);
  advise_huge(buffer.mutable_data_ptr<float>(), size_t(floats) * sizeof(float));
  return buffer;
}

template <class T>
T* zeroed(const Tensor& tensor) {
  T* data = tensor.mutable_data_ptr<T>();
  std::fill_n(data, tensor.numel(), T(0));  // data is null where there is no sample
  return data;
}

std::tuple<Tensor, Tensor, Tensor> forward_op(const Tensor& images, const Tensor& weights, const Tensor& table,
                                              std::vector<int64_t> config, std::optional<Tensor> gates,
                                              Tensor workspace, Tensor logits) {
  const std::string op = "network_forward: ";
  const NetworkConfig parsed = parse_config(config, "network_forward");
  check(op + "images", images, ScalarType::Float, {-1, parsed.in_channels, -1, -1});
  const int64_t n = images.size(0), h = images.size(2), w = images.size(3), rows = parsed.layers + 1;
  check_size("network_forward", parsed, h, w);
  check(op + "logits", logits, ScalarType::Float, {n, parsed.num_classes, -1, -1});
  const int64_t out_h = logits.size(2), out_w = logits.size(3);
  require(out_h >= 1 && out_h <= h && out_w >= 1 && out_w <= w,
          op + "logits: wanted at most " + std::to_string(h) + "x" + std::to_string(w) + " pixels, got " +
              std::to_string(out_h) + "x" + std::to_string(out_w));
  check(op + "weights", weights, ScalarType::Float, {-1});
  check(op + "table", table, ScalarType::Long, {table_rows(parsed.layers), kTableFields});
  if (gates) check(op + "gates", *gates, ScalarType::Float, {n, rows, kScales, kPaths});
  const TorchParallel parallel;
  const NetworkSizes sizes(parsed, int(n), int(h), int(w), parallel.threads());
  check(op + "workspace", workspace, ScalarType::Float, {-1});
  require(workspace.size(0) >= sizes.floats, op + "workspace: wanted " + std::to_string(sizes.floats) +
                                                 " floats, got " + std::to_string(workspace.size(0)));
  for (const auto& [tensor, name] : {std::pair{&images, "images"},
                                     {&weights, "weights"},
                                     {&table, "table"},
                                     {static_cast<const Tensor*>(&workspace), "workspace"},
                                     {static_cast<const Tensor*>(&logits), "logits"}})
    require(tensor->is_contiguous(), op + name + ": wanted a contiguous tensor");
  const int64_t *offsets = table.const_data_ptr<int64_t>(), size = weights.size(0);
  for (int64_t i = 0; i < table.numel(); ++i)
    require(offsets[i] >= -1 && offsets[i] < size, op + "table: wanted offsets within weights (" +
                                                       std::to_string(size) + " floats), got " +
                                                       std::to_string(offsets[i]));

  Tensor alphas = new_tensor({n, rows, kScales, kPaths}, ScalarType::Float);
  Tensor node_macs = new_tensor({n, rows, kScales, kNodeParts}, ScalarType::Long);
  Tensor sample_macs = new_tensor({n, kSampleParts}, ScalarType::Long);
  std::optional<Values<float>> forced;
  if (gates) forced.emplace(*gates);
  NetworkArgs args = {};
  args.images = images.const_data_ptr<float>();
  args.weights = weights.const_data_ptr<float>();
  args.table = offsets;
  args.gates = forced ? forced->data() : nullptr;
  args.n = int(n), args.h = int(h), args.w = int(w), args.out_h = int(out_h), args.out_w = int(out_w);
  args.workspace = workspace.mutable_data_ptr<float>();
  args.logits = logits.mutable_data_ptr<float>();
  args.alphas = zeroed<float>(alphas);
  args.node_macs = zeroed<int64_t>(node_macs);
  args.sample_macs = zeroed<int64_t>(sample_macs);
  network_forward(parsed, sizes, args, parallel);
  return {alphas, node_macs, sample_macs};
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) { m.impl("network_forward", TORCH_BOX(&dynroute::forward_op)); }

STABLE_TORCH_LIBRARY_IMPL(dynroute, CompositeExplicitAutograd, m) {
  m.impl("network_workspace", TORCH_BOX(&dynroute::workspace_op));
  m.impl("network_buffer", TORCH_BOX(&dynroute::buffer_op));
}
