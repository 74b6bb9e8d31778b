// The float kernels of one instruction set (DYNROUTE_CHECK: its name) against the portable ones in double precision, on
// small odd maps, without torch: tests/test_neon.py compiles it, for other processors too, and runs it, under emulation
// if need be. Prints the largest error of each kernel relative to the largest value; exits with 1 if one is too large.
// Every map, weight and scratch ends at a page that must not be touched (memory.h).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/cpu/plan.h"
#include "memory.h"

namespace dynroute {

namespace DYNROUTE_CHECK {
const Kernels<float>& float_kernels();
}
namespace portable {
const Kernels<double>& double_kernels();
}

// What dispatch.cpp gives the library: here a fresh guarded block per request, full of NaN.
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

int failures = 0;

struct Report {
  const char* kernel;
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
  if (error > kTolerance * largest) report.fail(name, "an error of " + std::to_string(error / largest));
}

struct Counts {
  int64_t macs = 0, halo = 0;
  bool operator!=(const Counts& other) const { return macs != other.macs || halo != other.halo; }
};

// build(T(), counts) gives the job of a precision, run(job) runs its tasks (all do so last first: order must not
// matter).
template <class Build, class Run>
void both(Report& report, const std::string& name, Values& out, const Build& build, const Run& run) {
  out.fill(kUnwritten);
  Counts counts[2];
  run(build(float(), counts[0]));
  run(build(double(), counts[1]));
  compare(report, name, out);
  if (counts[0] != counts[1]) report.fail(name, "the counted work differs");
}

struct PointwiseValues {
  PointwiseValues(int k, int n) : k(k), n(n), panels(round_up(n, kPanel) * k), shift(round_up(n, kPanel)) {
    panels.randomise(std::sqrt(3.0 / k));
    shift.randomise(0.5);
    for (int64_t i = 0; i < panels.size; ++i)
      if (i / (int64_t(k) * kPanel) * kPanel + i % kPanel >= n) panels.set(i, 0);
    for (int64_t c = n; c < shift.size; ++c) shift.set(c, 0);
  }
  template <class T>
  Pointwise<T> get() const {
    return {panels.data<T>(), shift.data<T>(), k, n};
  }
  const int k, n;
  Values panels, shift;
};

std::string text(std::initializer_list<std::pair<const char*, int>> fields) {
  std::string all;
  for (const auto& [key, value] : fields)
    all += std::string(all.empty() ? "" : " ") + key + "=" + std::to_string(value);
  return all;
}

// --- sepconv -------------------------------------------------------------------------------------------------------

struct Stage {
  int c_out, stride = 1, pad = 1;
  bool full = false, relu = true;
};

void sepconv(Report& report, int c, int h, int w, std::initializer_list<Stage> wanted, bool planar, bool residual) {
  const int stages = int(wanted.size()), c_in = c;
  RowStage<float> shape[3] = {};
  std::unique_ptr<Values> depthwise[3];
  std::unique_ptr<PointwiseValues> pointwise[3];
  Values x(int64_t(h) * w * c);
  x.randomise(1.5);
  std::string name = text({{"c", c}, {"h", h}, {"w", w}, {"residual", residual}});
  int k = 0;
  for (const Stage& stage : wanted) {
    name += " -> " + std::to_string(stage.c_out) + (stage.full ? "full" : "") + "/" + std::to_string(stage.stride);
    RowStage<float>& s = shape[k];
    s.c_in = c, s.stride = stage.stride, s.pad = stage.pad, s.relu = stage.relu;
    s.h_in = h, s.w_in = w;
    s.h_out = h = (h + 2 * stage.pad - 3) / stage.stride + 1;
    s.w_out = w = (w + 2 * stage.pad - 3) / stage.stride + 1;
    if (!stage.full) {
      depthwise[k] = std::make_unique<Values>(9 * int64_t(c));
      depthwise[k]->randomise(0.6);
    }
    pointwise[k++] = std::make_unique<PointwiseValues>(stage.full ? 9 * c : c, stage.c_out);
    c = stage.c_out;
  }
  Values out(int64_t(h) * w * c), other_bands(out.size);
  const auto build = [&](int band_rows, const Values& to) {
    return [&, band_rows](auto zero, Counts& counts) {
      using T = decltype(zero);
      SepconvJob<T> job = {};
      job.stages = stages;
      for (int i = 0; i < stages; ++i) {
        RowStage<T>& s = job.stage[i];
        const RowStage<float>& from = shape[i];
        s.depthwise = depthwise[i] ? depthwise[i]->template data<T>() : nullptr;
        s.pointwise = pointwise[i]->template get<T>();
        s.c_in = from.c_in, s.stride = from.stride, s.pad = from.pad, s.relu = from.relu;
        s.h_in = from.h_in, s.w_in = from.w_in, s.h_out = from.h_out, s.w_out = from.w_out;
      }
      job.x = x.data<T>();
      job.planar = planar;
      job.residual = residual ? x.data<T>() : nullptr;
      job.out = to.data<T>();
      job.band_rows = band_rows;
      job.macs = &counts.macs, job.halo = &counts.halo;
      return job;
    };
  };
  const auto run = [](const auto& job) {
    for (int task = plan::sepconv_tasks(job); task-- > 0;) table_of(job).sepconv(job, task);
  };
  if (residual && (c != c_in || out.size != x.size)) std::abort();
  both(report, name, out, build(plan::kFusedRows, out), run);
  both(report, name + " in short bands", other_bands, build(5, other_bands), run);
  if (std::memcmp(out.data<float>(), other_bands.data<float>(), size_t(out.size) * sizeof(float)) != 0)
    report.fail(name, "the bits depend on the bands");
}

void check_sepconv() {
  Report report{"sepconv"};
  const std::pair<int, int> sizes[] = {{1, 1}, {1, 7}, {7, 5}, {13, 9}, {9, 34}, {37, 19}};
  for (const auto& [h, w] : sizes)
    for (int c : {8, 16, 24, 40, 64, 136}) {
      if (c > 64 && h * w > 150) continue;
      const Stage plain = {c}, linear = {c, 1, 1, false, false}, halve = {c, 2};
      sepconv(report, c, h, w, {linear}, false, false);
      sepconv(report, c, h, w, {plain}, false, true);
      sepconv(report, c, h, w, {plain, plain}, false, true);
      sepconv(report, c, h, w, {plain, plain, linear}, false, true);
      sepconv(report, c, h, w, {halve}, false, false);
      sepconv(report, c, h, w, {halve, plain}, false, false);
      sepconv(report, c, h, w, {{c + 8, 2}, {c}, {2 * c}}, false, false);
      for (int classes : {1, 5, 19})
        sepconv(report, c, h, w, {{classes, 1, 1, true, false}}, false, false);  // predictor
    }
  for (const auto& [h, w] : {std::pair{7, 5}, {32, 32}, {35, 64}, {64, 33}})
    for (int width : {8, 24, 64})
      sepconv(report, 3, h, w, {{width, 2, 0, true}, {width}, {width / 2, 2}}, true, false);  // stem
}

// --- the others ----------------------------------------------------------------------------------------------------

void check_transform() {
  Report report{"transform"};
  for (const auto& [h, w] : {std::pair{1, 1}, {7, 5}, {13, 9}, {33, 34}})
    for (int k : {8, 24, 64, 136})
      for (int n : {4, 8, 12, 16, 40, 72})
        for (int bits = 0; bits < 8; ++bits) {
          const int stride = 1 + (bits & 1);
          const int h_out = (h - 1) / stride + 1, w_out = (w - 1) / stride + 1;
          const PointwiseValues weights(k, n);
          Values x(int64_t(h) * w * k), out(int64_t(h_out) * w_out * n);
          x.randomise(1.5);
          x.set(0, std::nan(""));  // must come out as NaN, through either ReLU
          const auto build = [&](auto zero, Counts& counts) {
            using T = decltype(zero);
            TransformJob<T> job = {};
            job.x = x.data<T>(), job.out = out.data<T>();
            job.pointwise = weights.get<T>();
            job.h_in = h, job.w_in = w, job.h_out = h_out, job.w_out = w_out, job.stride = stride;
            job.relu_input = bits & 2, job.relu = bits & 4;
            job.macs = &counts.macs;
            return job;
          };
          const auto run = [](const auto& job) {
            for (int task = plan::transform_tasks(job); task-- > 0;) table_of(job).transform(job, task);
          };
          both(report, text({{"h", h}, {"w", w}, {"k", k}, {"n", n}, {"stride,relus", bits}}), out, build, run);
        }
}

void check_aggregate() {
  Report report{"aggregate"};
  for (const auto& [h, w] : {std::pair{2, 2}, {2, 18}, {14, 10}, {26, 36}, {7, 5}, {1, 1}, {90, 34}})
    for (int c : {4, 8, 12, 24, 64})
      for (int sources = 0; sources < 8; ++sources) {
        const bool down = sources & 1, keep = sources & 2, up = sources & 4;
        if (up && (h % 2 || w % 2)) continue;
        const int64_t size = int64_t(h) * w * c;
        Values downs(size), keeps(size), ups(up ? size / 4 : 0), out(size);
        downs.randomise(1), keeps.randomise(1), ups.randomise(1);
        const auto build = [&](auto zero, Counts&) {
          using T = decltype(zero);
          AggregateJob<T> job = {};
          if (down) job.down = downs.data<T>(), job.down_weight = T(0.75);
          if (keep) job.keep = keeps.data<T>(), job.keep_weight = T(0.3125);
          if (up) job.up = ups.data<T>(), job.up_weight = T(0.625);
          job.out = out.data<T>();
          job.h = h, job.w = w, job.c = c;
          return job;
        };
        const auto run = [](const auto& job) {
          for (int task = plan::aggregate_tasks(job); task-- > 0;) table_of(job).aggregate(job, task);
        };
        both(report, text({{"h", h}, {"w", w}, {"c", c}, {"sources", sources}}), out, build, run);
      }
}

void check_gate() {
  Report report{"gate"};
  for (const auto& [h, w] : {std::pair{1, 1}, {4, 4}, {7, 5}, {13, 9}, {33, 34}, {47, 61}})
    for (int k : {8, 24, 64, 136})
      for (bool small : {false, true}) {
        if (small && (h < 4 || w < 4)) continue;
        const PointwiseValues weights(k, k / 2);
        Values x(int64_t(h) * w * k), sums(plan::gate_tasks(h, w, small) * round_up(k / 2, kPanel));
        x.randomise(1.5);
        const auto build = [&](auto zero, Counts& counts) {
          using T = decltype(zero);
          GateJob<T> job = {};
          job.x = x.data<T>(), job.partials = sums.data<T>();
          job.pointwise = weights.get<T>();
          job.h = h, job.w = w, job.small = small;
          job.macs = &counts.macs;
          return job;
        };
        const auto run = [](const auto& job) {
          for (int task = plan::gate_tasks(job.h, job.w, job.small); task-- > 0;) table_of(job).gate(job, task);
        };
        both(report, text({{"h", h}, {"w", w}, {"k", k}, {"small", small}}), sums, build, run);
      }
}

void check_upsample() {
  Report report{"upsample"};
  for (const auto& [h, w] : {std::pair{1, 1}, {2, 3}, {7, 5}, {8, 9}, {19, 23}})
    for (int c : {1, 5, 19})
      for (int crop : {0, 1, 3}) {
        const int out_h = 4 * h - crop, out_w = 4 * w - crop;
        Values x(int64_t(h) * w * c), out(int64_t(out_h) * out_w * c);
        x.randomise(1);
        const auto build = [&](auto zero, Counts&) {
          using T = decltype(zero);
          UpsampleJob<T> job = {};
          job.x = x.data<T>(), job.out = out.data<T>();
          job.h = h, job.w = w, job.c = c, job.out_h = out_h, job.out_w = out_w;
          return job;
        };
        const auto run = [](const auto& job) {
          for (int task = plan::upsample_tasks(job); task-- > 0;) table_of(job).upsample(job, task);
        };
        both(report, text({{"h", h}, {"w", w}, {"c", c}, {"crop", crop}}), out, build, run);
      }
}

}  // namespace
}  // namespace dynroute

int main() {
  dynroute::check_sepconv();
  dynroute::check_transform();
  dynroute::check_aggregate();
  dynroute::check_gate();
  dynroute::check_upsample();
  if (dynroute::failures) std::printf("%d failures\n", dynroute::failures);
  return dynroute::failures ? 1 : 0;
}
