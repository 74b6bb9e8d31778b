// The whole network, and what the library says about itself.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bindings/network_checks.h"
#include "contract/describe.h"
#include "bind.h"
#include "cpu/network/engine.h"
#include "cpu/kernels/memory.h"
#include "cpu/network/gate_end.h"

namespace dynroute {
namespace {

int64_t workspace_op(int64_t n, int64_t h, int64_t w, std::vector<int64_t> config) {
  const NetworkConfig parsed = parse_config(config, "network_workspace");
  check_size("network_workspace", parsed, h, w);
  return network_workspace(parsed, int(n), int(h), int(w), TorchParallel().threads());
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
  check(op + "images", images, ScalarType::Float, {-1, 3, -1, -1});
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
  const int64_t floats = network_workspace(parsed, int(n), int(h), int(w), TorchParallel().threads());
  check(op + "workspace", workspace, ScalarType::Float, {-1});
  require(workspace.size(0) >= floats,
          op + "workspace: wanted " + std::to_string(floats) + " floats, got " + std::to_string(workspace.size(0)));
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
  Tensor nodes = new_tensor({n, rows, kScales, 5}, ScalarType::Long), other = new_tensor({n, 3}, ScalarType::Long);
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
  args.nodes = zeroed<int64_t>(nodes);
  args.other = zeroed<int64_t>(other);
  network_forward(parsed, args, TorchParallel());
  return {alphas, nodes, other};
}

std::string build_info() {
  const std::string quote = "\"";
  const auto field = [&](const char* key, const std::string& value) { return quote + key + "\": \"" + value + quote; };
  return "{" + field("compiler", DYNROUTE_COMPILER) + ", " + field("flags", DYNROUTE_FLAGS) +
         ", \"isas\": " + compiled_isas() + ", " + field("isa", chosen_isa()) + ", " + field("why", why_chosen_isa()) +
         ", " + field("torch_target", DYNROUTE_TORCH_TARGET) + "}";
}

std::string contract_op() { return describe_contract(); }

std::vector<int64_t> last_macs_op() { return {last_macs[0], last_macs[1]}; }

bool weights_in_tiles_op(int64_t k, int64_t n) { return weights_in_tiles(int(k), int(n)); }

void debug_skip_tile(int64_t index) { debug_skipped_task = index; }

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) { m.impl("network_forward", TORCH_BOX(&dynroute::forward_op)); }

STABLE_TORCH_LIBRARY_IMPL(dynroute, CompositeExplicitAutograd, m) {
  m.impl("network_workspace", TORCH_BOX(&dynroute::workspace_op));
  m.impl("network_buffer", TORCH_BOX(&dynroute::buffer_op));
  m.impl("contract", TORCH_BOX(&dynroute::contract_op));
  m.impl("build_info", TORCH_BOX(&dynroute::build_info));
  m.impl("weights_in_tiles", TORCH_BOX(&dynroute::weights_in_tiles_op));
  m.impl("last_macs", TORCH_BOX(&dynroute::last_macs_op));
  m.impl("debug_skip_tile", TORCH_BOX(&dynroute::debug_skip_tile));
}
