// How the library learns to reach other processes.
#include "synchronise.h"

#include <torch/csrc/stable/library.h>

namespace dynroute {
namespace {

void set_gather(int64_t address) { gather_function = reinterpret_cast<GatherFunction>(static_cast<intptr_t>(address)); }

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CompositeExplicitAutograd, m) {
  m.impl("set_gather", TORCH_BOX(&dynroute::set_gather));
}
