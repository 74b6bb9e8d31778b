// What the library says about itself and about the last call; a switch for tests of the counters.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "bind.h"
#include "contract/describe.h"
#include "cpu/kernels/kernels.h"

namespace dynroute {
namespace {

std::string build_info() {
  const std::string quote = "\"";
  const auto field = [&](const char* key, const std::string& value) { return quote + key + "\": \"" + value + quote; };
  return "{" + field("compiler", DYNROUTE_COMPILER) + ", " + field("flags", DYNROUTE_FLAGS) +
         ", \"isas\": " + compiled_isas() + ", " + field("isa", chosen_isa()) + ", " + field("why", why_chosen_isa()) +
         ", " + field("torch_target", DYNROUTE_TORCH_TARGET) + "}";
}

std::string contract_op() { return describe_contract(); }

std::vector<int64_t> last_macs_op() { return {last_macs.executed, last_macs.halo}; }

int64_t total_macs_op() { return total_macs.load(std::memory_order_relaxed); }

bool weights_in_tiles_op(int64_t k, int64_t n) { return weights_in_tiles(int(k), int(n)); }

void debug_skip_tile(int64_t index) { debug_skipped_task = index; }

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CompositeExplicitAutograd, m) {
  m.impl("contract", TORCH_BOX(&dynroute::contract_op));
  m.impl("build_info", TORCH_BOX(&dynroute::build_info));
  m.impl("weights_in_tiles", TORCH_BOX(&dynroute::weights_in_tiles_op));
  m.impl("last_macs", TORCH_BOX(&dynroute::last_macs_op));
  m.impl("total_macs", TORCH_BOX(&dynroute::total_macs_op));
  m.impl("debug_skip_tile", TORCH_BOX(&dynroute::debug_skip_tile));
}
