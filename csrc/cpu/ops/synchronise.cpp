// How the library learns to reach other processes.
#include "synchronise.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(dynroute, CompositeExplicitAutograd, m) {
  m.impl("set_gather", TORCH_BOX(&dynroute::set_gather_function));
}
