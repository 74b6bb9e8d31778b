// The machine as the cost model sees it.
#pragma once
#include <cstdint>

namespace dynroute {

struct Machine {
  int64_t l1_bytes, l2_bytes, l3_bytes;  // data caches: of a core, of a core, shared
  double flops;                          // a core's multiply-adds per nanosecond, twice
  double l2_bytes_per_ns, memory_bytes_per_ns;
};

// Cache sizes as the system reports them (else common ones); speeds are typical values for the instruction set, since
// only their proportions matter to a choice between plans.
Machine read_machine(const char* isa);

}  // namespace dynroute
