// What the programs that check the kernels of one instruction set share (DYNROUTE_CHECK: its name): values in both
// precisions, and the comparison of what the float kernels made of them with what the portable ones made in double. An
// error is relative to the largest value. Every map, weight and scratch ends at a page that must not be touched
// (memory.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/scratch.h"
#include "memory.h"

namespace dynroute {

namespace DYNROUTE_CHECK {
const Kernels<float>& float_kernels();
}
namespace portable {
const Kernels<double>& double_kernels();
}

// What scratch.cpp gives the library: here a fresh guarded block per request, full of NaN.
void* thread_scratch(size_t bytes) {
  static std::unique_ptr<check::Guarded> held;
  bytes = size_t(round_up(int64_t(bytes), 64));
  held = std::make_unique<check::Guarded>(bytes);
  std::memset(held->data(), 0xff, bytes);
  return held->data();
}
void* call_scratch(size_t) {
  std::fprintf(stderr, "a kernel asked for call_scratch, which is the bindings'\n");
  std::exit(2);
}

namespace {

using check::Values;

constexpr double kTolerance = 2e-5;  // as in tests/ops: the rounding of sums of a few hundred terms
constexpr double kUnwritten = 1e30;
#if defined(DYNROUTE_CHECK_TILES)
constexpr bool kTiles = true;  // float weights of most shapes are packed so
#else
constexpr bool kTiles = false;
#endif

int failures = 0;

struct Report {
  const char* kernel;
  double tolerance = kTolerance;
  int cases = 0;
  double error = 0;
  void fail(const std::string& name, const std::string& what) {
    if (++failures <= 20) std::printf("FAILED %s %s: %s\n", kernel, name.c_str(), what.c_str());
  }
  ~Report() { std::printf("%-10s %4d cases, largest error %.2e\n", kernel, cases, error); }
};

// the kernels that run a job
template <template <class> class Job>
const Kernels<float>& table_of(const Job<float>&) {
  return DYNROUTE_CHECK::float_kernels();
}
template <template <class> class Job>
const Kernels<double>& table_of(const Job<double>&) {
  return portable::double_kernels();
}

// out in float against out in double
void compare(Report& report, const std::string& name, const Values& out) {
  double largest = 1e-30, error = 0;
  const float* got = out.data<float>();
  const double* wanted = out.data<double>();
  for (int64_t i = 0; i < out.size; ++i) {
    const bool unwritten = got[i] == float(kUnwritten) || wanted[i] == double(float(kUnwritten));
    if (unwritten || std::isnan(got[i]) != std::isnan(wanted[i]))
      return report.fail(name, "element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", wanted " +
                                   std::to_string(wanted[i]));
    if (std::isnan(wanted[i])) continue;
    largest = std::max(largest, std::abs(wanted[i]));
    error = std::max(error, std::abs(double(got[i]) - wanted[i]));
  }
  ++report.cases;
  report.error = std::max(report.error, error / largest);
  if (error > report.tolerance * largest) report.fail(name, "an error of " + std::to_string(error / largest));
}

struct Counts {
  int64_t macs = 0, halo = 0;
  bool operator!=(const Counts& other) const { return macs != other.macs || halo != other.halo; }
};

struct PointwiseValues {
  PointwiseValues(int k, int n) : k(k), n(n), panels(round_up(n, kPanel) * k), shift(round_up(n, kPanel)) {
    panels.randomise(std::sqrt(3.0 / k));
    shift.randomise(0.5);
    for (int64_t i = 0; i < panels.size; ++i)
      if (i / (int64_t(k) * kPanel) * kPanel + i % kPanel >= n) panels.set(i, 0);
    for (int64_t c = n; c < shift.size; ++c) shift.set(c, 0);
    if (!kTiles || !in_tiles(k, n)) return;
    tiles = std::make_unique<check::Guarded>(size_t(tiles_size<float>(n, k)) * sizeof(bf16));
    for (int64_t panel = 0; panel * kPanel < n; ++panel)
      tile_panel(panels.data<float>() + panel * k * kPanel, k,
                 static_cast<bf16*>(tiles->data()) + panel * tiles_size<float>(kPanel, k));
  }
  template <class T>
  Pointwise<T> get() const {
    if (tiles && sizeof(T) == sizeof(float)) return {static_cast<const T*>(tiles->data()), shift.data<T>(), k, n};
    return {panels.data<T>(), shift.data<T>(), k, n};
  }
  const int k, n;
  Values panels, shift;
  std::unique_ptr<check::Guarded> tiles;
};

std::string text(std::initializer_list<std::pair<const char*, int>> fields) {
  std::string all;
  for (const auto& [key, value] : fields)
    all += std::string(all.empty() ? "" : " ") + key + "=" + std::to_string(value);
  return all;
}

}  // namespace
}  // namespace dynroute
