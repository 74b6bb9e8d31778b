// The machine's arithmetic peak, for benchmarks to hold their rates against.
#include <torch/csrc/stable/library.h>

#include "bindings/checks.h"
#include "cpu/kernels/kernels.h"

namespace dynroute {
namespace {

double fma_flops(std::string isa, int64_t iterations) {
  require(iterations >= 1, "fma_flops: iterations: wanted at least 1, got " + std::to_string(iterations));
  return kernels_of(isa, "fma_flops: isa").fma_loop(iterations);
}

double tile_flops(std::string isa, int64_t iterations) {
  require(iterations >= 1, "tile_flops: iterations: wanted at least 1, got " + std::to_string(iterations));
  const auto loop = kernels_of(isa, "tile_flops: isa").tile_loop;
  require(loop, "tile_flops: isa: '" + isa + "' has no tiles");
  return loop(iterations);
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CompositeExplicitAutograd, m) {
  m.impl("fma_flops", TORCH_BOX(&dynroute::fma_flops));
  m.impl("tile_flops", TORCH_BOX(&dynroute::tile_flops));
}
