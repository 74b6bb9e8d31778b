// The float kernels of inference of one instruction set (DYNROUTE_CHECK: its name) against the portable ones in double
// precision, on small odd maps, without torch: test_kernels.py compiles it, for other processors too, and runs it,
// under emulation if need be. Prints the largest error of each kernel; exits with 1 if one is too large.
// What must not change a bit is compared bit for bit: how a sepconv is cut, and whether X is stored or pulled.
#if defined(DYNROUTE_CHECK_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "check.h"
#include "cpu/kernels/tasks_of_jobs.h"

namespace dynroute {
namespace {

void same_bits(Report& report, const std::string& name, const Values& out, const Values& wanted) {
  const float *got = out.data<float>(), *expected = wanted.data<float>();
  ++report.cases;
  if (std::memcmp(got, expected, size_t(wanted.size) * sizeof(float)) == 0) return;
  int64_t at = 0;
  while (std::memcmp(got + at, expected + at, sizeof(float)) == 0) ++at;
  report.fail(name, "other bits from element " + std::to_string(at) + " on: " + std::to_string(got[at]) + ", wanted " +
                        std::to_string(expected[at]));
}

// build(T(), counts) gives the job of a precision, run(job) runs its tasks (all do so last first: order must not
// matter).
// Returns what the job counted.
template <class Build, class Run>
Counts both(Report& report, const std::string& name, Values& out, const Build& build, const Run& run) {
  out.fill(kUnwritten);
  Counts counts[2];
  run(build(float(), counts[0]));
  run(build(double(), counts[1]));
  compare(report, name, out);
  if (counts[0] != counts[1]) report.fail(name, "the counted work differs");
  return counts[0];
}

// In float alone.
template <class Build, class Run>
Counts single(Values& out, const Build& build, const Run& run) {
  out.fill(kUnwritten);
  Counts counts;
  run(build(float(), counts));
  return counts;
}

// --- X and its sources ---------------------------------------------------------------------------------------------

constexpr int kAllSources = 7, kDown = 1, kKeep = 2, kUp = 4;  // bits

const auto run_aggregate = [](const auto& job) {
  for (int task = cuts::aggregate_tasks(job); task-- > 0;) table_of(job).aggregate(job, task);
};

// Some sources of a map X; the others have weight 0 and a pointer that must not be followed.
struct SourceValues {
  SourceValues(int h, int w, int c, int which)
      : which(which), h(h), w(w), c(c), down(size(kDown)), keep(size(kKeep)), up(size(kUp)) {
    down.randomise(1), keep.randomise(1), up.randomise(1);
  }
  static bool possible(int h, int w, int which) { return !(which & kUp) || (h % 2 == 0 && w % 2 == 0); }
  template <class T>
  Sources<T> get() const {
    return {down.data<T>(),
            keep.data<T>(),
            up.data<T>(),
            which & kDown ? T(0.75) : 0,
            which & kKeep ? T(0.3125) : 0,
            which & kUp ? T(0.625) : 0};
  }
  template <class T>
  AggregateJob<T> aggregate(const Values& out) const {
    return {get<T>(), out.data<T>(), h, w, c};
  }
  void store(const Values& x) const { run_aggregate(aggregate<float>(x)); }  // in float alone
  const int which, h, w, c;
  Values down, keep, up;

 private:
  int64_t size(int source) const { return which & source ? int64_t(h) * w * c / (source == kUp ? 4 : 1) : 0; }
};

// --- sepconv -------------------------------------------------------------------------------------------------------

struct Stage {
  int c_out, stride = 1, pad = 1;
  bool full = false, relu = true;
};

constexpr int kWhole = 64;  // no map here is higher or wider
constexpr Tiling kTiling = {16, 4, kWhole, 48};
constexpr Tiling kTilings[] = {
    {5, 1, 16, 48},             // strips, a row at a time
    {5, 3, kWhole, 128},        // several rows in a panel; steps that do not fill their bands
    {3, 2, 7, 6},               // strips narrower than a block of pixels, and more than a tile
    {2, 1, kWhole, 1},          // more halo than anything else
    {kWhole, kWhole, 16, 128},  // everything at once
};

std::string text(const Tiling& tiling) {
  const auto& [rows, step, strip, tile] = tiling;
  return text({{" rows", rows}, {"step", step}, {"strip", strip}, {"tile", tile}});
}

// A stack of stages with their weights, and X for it.
class Stack {
 public:
  Stack(int c, int h, int w, std::initializer_list<Stage> wanted, bool planar, bool residual)
      : stages_(int(wanted.size())),
        planar_(planar),
        residual_(residual),
        name_(text({{"c", c}, {"h", h}, {"w", w}, {"residual", residual}})),
        x_(int64_t(h) * w * c) {
    const int c_in = c;
    x_.randomise(1.5);
    int k = 0;
    for (const Stage& stage : wanted) {
      name_ += " -> " + std::to_string(stage.c_out) + (stage.full ? "full" : "") + "/" + std::to_string(stage.stride);
      RowStage<float>& s = shape_[k];
      s.c_in = c, s.stride = stage.stride, s.pad = stage.pad, s.relu = stage.relu;
      s.h_in = h, s.w_in = w;
      s.h_out = h = (h + 2 * stage.pad - 3) / stage.stride + 1;
      s.w_out = w = (w + 2 * stage.pad - 3) / stage.stride + 1;
      if (!stage.full) {
        depthwise_[k] = std::make_unique<Values>(9 * int64_t(c));
        depthwise_[k]->randomise(0.6);
      }
      pointwise_[k++] = std::make_unique<PointwiseValues>(stage.full ? 9 * c : c, stage.c_out);
      c = stage.c_out;
    }
    out_size_ = int64_t(h) * w * c;
    if (residual && (c != c_in || out_size_ != x_.size)) std::abort();
  }

 private:
  static constexpr auto run = [](const auto& job) {
    for (int task = cuts::sepconv_tasks(job); task-- > 0;) table_of(job).sepconv(job, task);
  };

  auto build(const Values& to, const Tiling& tiling, const SourceValues* sources) const {
    return [&, sources](auto zero, Counts& counts) {
      using T = decltype(zero);
      SepconvJob<T> job = {};
      job.stages = stages_;
      for (int i = 0; i < stages_; ++i) {
        RowStage<T>& s = job.stage[i];
        const RowStage<float>& from = shape_[i];
        s.depthwise = depthwise_[i] ? depthwise_[i]->template data<T>() : nullptr;
        s.pointwise = pointwise_[i]->template get<T>();
        s.c_in = from.c_in, s.stride = from.stride, s.pad = from.pad, s.relu = from.relu;
        s.h_in = from.h_in, s.w_in = from.w_in, s.h_out = from.h_out, s.w_out = from.w_out;
      }
      if (sources) job.sources = sources->template get<T>();
      else (planar_ ? job.image : job.x) = x_.data<T>();
      job.residual = residual_;
      job.out = to.data<T>();
      job.tiling = tiling;
      job.macs = &counts.macs, job.halo = &counts.halo;
      return job;
    };
  }

  // Whole maps between the stages, and X added as a map of its own.
  void run_staged(const Values& to, Counts& counts) const {
    const SepconvJob<float> whole = build(to, kTiling, nullptr)(float(), counts);
    std::unique_ptr<Values> between;
    for (int i = 0; i < stages_; ++i) {
      SepconvJob<float> job = whole;
      const RowStage<float>& s = whole.stage[i];
      const bool last = i == stages_ - 1;
      job.stages = 1;
      job.stage[0] = s;
      if (i > 0) job.image = nullptr;
      job.residual = false;
      job.addend = last && residual_ ? whole.x : nullptr;
      if (between) job.x = between->data<float>();
      auto made = last ? nullptr : std::make_unique<Values>(int64_t(s.h_out) * s.w_out * s.pointwise.n);
      if (made) job.out = made->data<float>();
      run(job);
      between = std::move(made);
    }
  }

 public:
  // Against double; then every other cut of it, and one stage at a time, against that.
  void check(Report& report) const {
    Values out(out_size_), other(out_size_);
    const Counts counts = both(report, name_, out, build(out, kTiling, nullptr), run);
    for (const Tiling& tiling : kTilings) {
      const std::string name = name_ + text(tiling);
      const Counts again = single(other, build(other, tiling, nullptr), run);
      same_bits(report, name, other, out);
      if (again.macs != counts.macs) report.fail(name, "the counted work depends on the tiling");
    }
    if (stages_ == 1 && !residual_) return;
    Counts staged;
    other.fill(kUnwritten);
    run_staged(other, staged);
    same_bits(report, name_ + " one stage at a time", other, out);
    if (staged.macs != counts.macs || staged.halo != 0) report.fail(name_, "the counted work depends on the fusion");
  }

  // X pulled from some of its sources against the same X stored.
  void check_pulled(Report& report, int which) {
    const RowStage<float>& first = shape_[0];
    const SourceValues sources(first.h_in, first.w_in, first.c_in, which);
    Values stored(out_size_), pulled(out_size_);
    sources.store(x_);
    const Counts counts = single(stored, build(stored, kTiling, nullptr), run);
    const auto check = [&](const Tiling& tiling) {
      const std::string name = name_ + text({{" sources", which}}) + text(tiling);
      const Counts again = single(pulled, build(pulled, tiling, &sources), run);
      same_bits(report, name, pulled, stored);
      if (again.macs != counts.macs) report.fail(name, "the counted work depends on where X is");
      return again;
    };
    if (check(kTiling) != counts) report.fail(name_, "the halo depends on where X is");
    for (const Tiling& tiling : kTilings) check(tiling);
  }

 private:
  const int stages_;
  const bool planar_, residual_;
  std::string name_;
  RowStage<float> shape_[3] = {};
  std::unique_ptr<Values> depthwise_[3];
  std::unique_ptr<PointwiseValues> pointwise_[3];
  Values x_;
  int64_t out_size_;
};

void sepconv(Report& report, int c, int h, int w, std::initializer_list<Stage> wanted, bool planar, bool residual) {
  Stack(c, h, w, wanted, planar, residual).check(report);
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

void check_pulled_sepconv() {
  Report report{"pulled"};
  for (const auto& [h, w] : {std::pair{1, 1}, {2, 2}, {7, 5}, {2, 18}, {14, 10}, {18, 20}})
    for (int c : {8, 24, 136}) {
      if (c > 24 && h * w > 40) continue;
      const Stage plain = {c}, linear = {c, 1, 1, false, false}, halve = {c, 2};
      for (int which = 0; which <= kAllSources; ++which) {
        if (!SourceValues::possible(h, w, which)) continue;
        const auto pulled = [&](std::initializer_list<Stage> stages, bool residual) {
          Stack(c, h, w, stages, false, residual).check_pulled(report, which);
        };
        pulled({linear}, false);
        pulled({plain}, true);
        pulled({plain, plain}, true);
        pulled({plain, plain, linear}, true);
        pulled({halve, plain}, false);
        pulled({plain, halve}, false);
        pulled({{c + 8, 2}, {c}, {2 * c}}, false);
      }
    }
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
            for (int task = cuts::transform_tasks(job); task-- > 0;) table_of(job).transform(job, task);
          };
          both(report, text({{"h", h}, {"w", w}, {"k", k}, {"n", n}, {"stride,relus", bits}}), out, build, run);
        }
}

void check_aggregate() {
  Report report{"aggregate"};
  for (const auto& [h, w] : {std::pair{2, 2}, {2, 18}, {14, 10}, {26, 36}, {7, 5}, {1, 1}, {90, 34}})
    for (int c : {4, 8, 12, 24, 64, 600})  // 600: more than a chunk
      for (int which = 0; which <= kAllSources; ++which) {
        if (!SourceValues::possible(h, w, which) || (c > 64 && h * w > 150)) continue;
        const SourceValues sources(h, w, c, which);
        Values out(int64_t(h) * w * c);
        const auto build = [&](auto zero, Counts&) { return sources.aggregate<decltype(zero)>(out); };
        both(report, text({{"h", h}, {"w", w}, {"c", c}, {"sources", which}}), out, build, run_aggregate);
      }
}

void check_gate() {
  Report report{"gate"};
  for (const auto& [h, w] : {std::pair{1, 1}, {4, 4}, {7, 5}, {13, 9}, {33, 34}, {47, 61}, {6, 10}, {34, 66}})
    for (int k : {8, 24, 64, 136})
      for (bool small : {false, true}) {
        if (small && (h < 4 || w < 4)) continue;
        const PointwiseValues weights(k, k / 2);
        const int64_t size = cuts::gate_tasks(h, w, small) * round_up(k / 2, kPanel);
        const std::string name = text({{"h", h}, {"w", w}, {"k", k}, {"small", small}});
        Values x(int64_t(h) * w * k), sums(size), pulled(size);
        x.randomise(1.5);
        const auto build = [&](const Values& to, const SourceValues* sources) {
          return [&, sources](auto zero, Counts& counts) {
            using T = decltype(zero);
            GateJob<T> job = {};
            if (sources) job.sources = sources->template get<T>();
            else job.x = x.data<T>();
            job.partials = to.data<T>();
            job.pointwise = weights.get<T>();
            job.h = h, job.w = w, job.small = small;
            job.macs = &counts.macs;
            return job;
          };
        };
        const auto run = [](const auto& job) {
          for (int task = cuts::gate_tasks(job.h, job.w, job.small); task-- > 0;) table_of(job).gate(job, task);
        };
        const Counts counts = both(report, name, sums, build(sums, nullptr), run);
        for (int which = 0; which <= kAllSources; ++which) {
          if (!SourceValues::possible(h, w, which)) continue;
          const std::string with_sources = name + text({{" sources", which}});
          const SourceValues sources(h, w, k, which);
          sources.store(x);
          single(sums, build(sums, nullptr), run);
          if (single(pulled, build(pulled, &sources), run) != counts)
            report.fail(with_sources, "the counted work depends on where X is");
          same_bits(report, with_sources, pulled, sums);
        }
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
          for (int task = cuts::upsample_tasks(job); task-- > 0;) table_of(job).upsample(job, task);
        };
        both(report, text({{"h", h}, {"w", w}, {"c", c}, {"crop", crop}}), out, build, run);
      }
}

}  // namespace
}  // namespace dynroute

int main() {
#if defined(DYNROUTE_CHECK_TILES)
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return std::perror("tiles"), 2;  // as isa.cpp asks
#endif
  dynroute::check_sepconv();
  dynroute::check_pulled_sepconv();
  dynroute::check_transform();
  dynroute::check_aggregate();
  dynroute::check_gate();
  dynroute::check_upsample();
  if (dynroute::failures) std::printf("%d failures\n", dynroute::failures);
  return dynroute::failures ? 1 : 0;
}
