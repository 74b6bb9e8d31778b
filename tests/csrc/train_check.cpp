// The float kernels of training of one instruction set (DYNROUTE_CHECK: its name) against the portable ones in double
// precision, on small odd maps, as kernels_check.cpp does it for inference.
#include <optional>
#include <vector>

#include "cpu/kernels/aggregate_backward.h"
#include "train_values.h"

namespace dynroute {
namespace {

// --- stages --------------------------------------------------------------------------------------------------------

template <class Body>
void for_stages(const Body& body) {
  for (const auto& [h, w] : kSizes)
    for (int c_in : {8, 24, 136})
      for (int c_out : {4, 24, 72})
        for (int stride : {1, 2})
          for (const Before before : {Before::kNothing, Before::kRelu, Before::kNorm})
            for (bool with_depthwise : {true, false}) {
              if (c_in * c_out > 600 && h * w > 150) continue;
              body(StageValues(h, w, c_in, c_out, stride, with_depthwise, before));
            }
}

void check_forward() {
  Report report{"forward", narrow ? kNarrowTolerance : kTolerance};
  for_stages([&](const StageValues& of) {
    const PointwiseValues weights(of.c_in, of.c_out);
    const int tasks = tasks_of(of.h_out, kBandRows);
    Output y("y", of.h_out, of.w_out, of.c_out), sums("sums", int64_t(tasks) * 3 * of.c_out);
    in_both(report, of.name(), {&y, &sums}, [&](auto zero, Counts& counts) {
      using T = decltype(zero);
      TrainForwardJob<T> job = {};
      job.stage = of.get<T>(), job.pointwise = weights.get<T>();
      const RawTarget<T> raw(y.data<T>(), y.values.size);
      job.y = raw.get(), job.sums = sums.data<T>(), job.band_rows = kBandRows, job.macs = &counts.macs;
      run_tasks<T>(kernels_in<T>().forward, job, tasks);
    });
  });
}

void check_norm() {
  Report applied{"apply"}, summed{"sums"};
  for (const auto& [h, w] : kSizes)
    for (int c : {4, 8, 24, 136})
      for (int bits = 0; bits < 8; ++bits) {
        const bool relu = bits & 1, with_residual = bits & 2, with_weight = bits & 4;
        const StageValues of(h, w, 8, c, 1, false, Before::kNothing);
        const Map* residual = with_residual ? &of.residual : nullptr;
        const std::string name = text({{"h", h}, {"w", w}, {"c", c}, {"relu,residual,weight", bits}});
        const int tasks = tasks_of(h, kBandRows);
        Output out("out", h, w, c);
        in_both(applied, name, {&out}, [&](auto zero, Counts&) {
          using T = decltype(zero);
          const T* weight = with_weight ? of.weight.data<T>() : nullptr;
          const TrainApplyJob<T> job = {of.y.raw<T>(), of.norm.scale.data<T>(), of.norm.shift.data<T>(),
                                        residual ? residual->data<T>() : nullptr, relu, weight, out.data<T>(),
                                        kSamples, kListed, h, w, c, kBandRows};
          run_tasks<T>(kernels_in<T>().apply, job, tasks);
        });
        Output sums("sums", int64_t(tasks) * 2 * c), dots("dots", with_weight ? tasks : 0);
        in_both(summed, name, {&sums, &dots}, [&](auto zero, Counts&) {
          using T = decltype(zero);
          const TrainSumsJob<T> job = {output_of<T>(of.y, of.norm, relu, residual), of.grad.data<T>(),
                                       with_weight ? of.weight.data<T>() : nullptr, sums.data<T>(), dots.data<T>(),
                                       kSamples, kListed, h, w, c, kBandRows};
          run_tasks<T>(kernels_in<T>().sums, job, tasks);
        });
      }
}

void check_product() {
  Report report{"product"};
  for_stages([&](const StageValues& of) {
    const PointwiseValues transposed(of.c_out, of.c_in);
    const int parts = std::min(3, kListed * of.h_out);  // each has a row at least
    for (bool kept : {false, true}) {
      const bool residual = of.stride == 1 && of.before == Before::kNorm;
      const int64_t product = int64_t(of.c_out) * of.c_in;
      Output grad_d("grad_d", of.h_out, of.w_out, of.c_in);
      Output grad_weight("grad_weight", kept ? 0 : parts * product), outer("outer", kept ? product : 0);
      const int64_t pixels = int64_t(of.h_out) * of.w_out;
      const Values gy(kBatch * pixels * panel_stride(of.c_out)), d(kBatch * pixels * panel_stride(of.c_in));
      in_both(report, of.name() + text({{" kept", kept}}), {&grad_d, &grad_weight, &outer},
              [&](auto zero, Counts& counts) {
                using T = decltype(zero);
                TrainProductJob<T> job = {};
                job.stage = of.get<T>();
                job.output = output_of<T>(of.y, of.norm, residual, residual ? &of.residual : nullptr);
                job.grad = of.grad.data<T>(), job.weight = kept ? of.weight.data<T>() : nullptr;
                job.gain = of.norm.gain.data<T>(), job.slope = of.norm.slope.data<T>();
                job.mean_grad = of.norm.mean_grad.data<T>();
                job.transposed = transposed.get<T>(), job.grad_d = grad_d.data<T>();
                job.grad_weight = grad_weight.data<T>();
                if (kept) job.kept_gy = gy.data<T>(), job.kept_d = d.data<T>();
                job.parts = parts, job.macs = &counts.macs;
                run_tasks<T>(kernels_in<T>().product, job, parts);
                if (!kept) return;
                const TrainOuterJob<T> last = {gy.data<T>(), d.data<T>(), outer.data<T>(), of.c_out,
                                               of.c_in, kSamples, kListed, int(pixels)};
                run_tasks<T>(kernels_in<T>().outer, last, int(ceil_div(of.c_out, kOuterRows)));
              });
    }
  });
}

void check_depthwise() {
  Report report{"depthwise"};
  for_stages([&](const StageValues& of) {
    if (of.c_out != 24) return;  // of no matter here
    const Map grad_d(of.h_out, of.w_out, of.c_in), added(of.h, of.w, of.c_in), more(of.h, of.w, of.c_in);
    const Map passed(of.h, of.w, of.c_in);
    const Norm passed_norm(of.c_in);
    for (int bits = 0; bits < 4; ++bits) {
      const bool with_added = bits & 1, with_sums = bits & 2;
      const int tasks = tasks_of(of.h, kBandRows);
      Output grad_x("grad_x", of.h, of.w, of.c_in), sums("sums", with_sums ? int64_t(tasks) * 2 * of.c_in : 0);
      Output weight("grad_weight", of.with_depthwise ? int64_t(tasks) * 9 * of.c_in : 0);
      in_both(report, of.name() + text({{" added,sums", bits}}), {&grad_x, &sums, &weight},
              [&](auto zero, Counts& counts) {
                using T = decltype(zero);
                TrainDepthwiseJob<T> job = {};
                job.stage = of.get<T>();
                job.grad_d = grad_d.data<T>(), job.flipped = of.flipped.data<T>();
                if (with_added) {
                  job.added = added.data<T>(), job.passed = output_of<T>(passed, passed_norm, true, nullptr);
                  job.more = more.data<T>(), job.more_weight = of.weight.data<T>();
                }
                job.grad_x = grad_x.data<T>(), job.sums = sums.data<T>(), job.grad_weight = weight.data<T>();
                job.mean = of.input_norm.mean.data<T>(), job.invstd = of.input_norm.invstd.data<T>();
                job.band_rows = kBandRows, job.macs = &counts.macs;
                run_tasks<T>(kernels_in<T>().depthwise, job, tasks);
              });
    }
  });
}

// --- nodes ---------------------------------------------------------------------------------------------------------

// H of a node with its two paths, c / 2 channels up and 2 * c down, the latter of which a sample may have closed.
struct NodeValues {
  NodeValues(int h, int w, int c, bool with_factor)
      : h(h),
        w(w),
        c(c),
        half_h(int(ceil_div(h, 2))),
        half_w(int(ceil_div(w, 2))),
        with_factor(with_factor),
        x(h, w, c),
        y(h, w, c),
        grad_keep(h, w, c),
        norm(c),
        factor(kBatch),
        hidden_weight(kBatch),
        x_weight(kBatch) {
    factor.fill(1.25);  // H stays on a grid
    x_weight.set(kSamples[0], 0);
  }
  template <class T>
  TrainHidden<T> hidden() const {
    return {x.data<T>(), y.raw<T>(), norm.scale.data<T>(), norm.shift.data<T>(),
            with_factor ? factor.data<T>() : nullptr, kSamples, kListed, h, w, c};
  }
  const int h, w, c, half_h, half_w;
  const bool with_factor;
  Map x, y, grad_keep;
  Norm norm;
  Values factor;
  Uniform hidden_weight, x_weight;
};

struct PathValues {
  PathValues(const NodeValues& of, int stride, int c)
      : stride(stride),
        c(c),
        h(stride == 1 ? of.h : of.half_h),
        w(stride == 1 ? of.w : of.half_w),
        raw(h, w, c),
        grad(h, w, c),
        norm(c),
        weights(of.c, c),
        transposed(c, of.c),
        weight(kBatch) {}
  const int stride, c, h, w;
  Map raw, grad;
  Norm norm;
  PointwiseValues weights, transposed;
  Uniform weight;
};

void check_paths() {
  Report forward{"paths", narrow ? kNarrowTolerance : kTolerance}, backward{"paths_back"};
  for (const auto& [h, w] : kSizes)
    for (int c : {8, 24, 136})
      for (int bits = 0; bits < 8; ++bits) {
        const bool with_up = bits & 1, with_down = bits & 2, with_factor = bits & 4;
        if (c > 24 && h * w > 150) continue;
        const NodeValues of(h, w, c, with_factor);
        const PathValues up(of, 1, c / 2), down(of, 2, 2 * c);
        const std::string name = text({{"h", h}, {"w", w}, {"c", c}, {"up,down,factor", bits}});
        const int tasks = tasks_of(h, kBandRows);
        const auto rows = [&](bool wanted, int64_t each) { return wanted ? tasks * each : 0; };
        Output keep("keep", h, w, c), up_raw("up", with_up ? h : 0, w, up.c);
        Output up_sums("up sums", rows(with_up, 3 * up.c));
        // sample 2 has its path down closed, hence neither raw output nor sums
        const auto is_shut = [](int sample) { return !kOpen[sample]; };
        Output down_raw("down", with_down ? int64_t(down.h) * down.w * down.c : 0);
        Output down_sums("down sums", with_down ? int64_t(tasks) / kListed * 3 * down.c : 0);
        in_both(forward, name, {&keep, &up_raw, &up_sums, &down_raw, &down_sums}, [&](auto zero, Counts& counts) {
          using T = decltype(zero);
          std::vector<T> raw(size_t(kBatch) * down.h * down.w * down.c, T(kUnwritten));
          std::vector<T> sums(size_t(tasks) * 3 * down.c, T(kUnwritten));
          std::optional<RawTarget<T>> of_up(std::in_place, up_raw.data<T>(), up_raw.values.size);
          std::optional<RawTarget<T>> of_down(std::in_place, with_down ? raw.data() : nullptr, int64_t(raw.size()));
          TrainPathsJob<T> job = {};
          job.hidden = of.hidden<T>();
          job.up = {up.weights.get<T>(), 1, nullptr, of_up->get(), up_sums.data<T>()};
          job.down = {down.weights.get<T>(), 2, kOpen, of_down->get(), sums.data()};
          job.hidden_weight = of.hidden_weight.data<T>(), job.x_weight = of.x_weight.data<T>();
          job.keep = keep.data<T>(), job.band_rows = kBandRows, job.macs = &counts.macs;
          run_tasks<T>(kernels_in<T>().paths, job, tasks);
          of_up.reset(), of_down.reset();
          if (!with_down) return;
          const size_t of_sample = raw.size() / kBatch, of_sums = sums.size() / kListed;
          for (int i = 0; i < kListed; ++i)
            if (!is_shut(kSamples[i])) {
              std::copy_n(raw.data() + kSamples[i] * of_sample, of_sample, down_raw.data<T>());
              std::copy_n(sums.data() + i * of_sums, of_sums, down_sums.data<T>());
            } else if (raw[kSamples[i] * of_sample] != T(kUnwritten)) {
              forward.fail(name, "a path was computed that is closed");
            }
        });
        for (bool kept : {false, true}) {
          const auto weights_size = [&](bool wanted, const PathValues& path) {
            return wanted && !kept ? int64_t(tasks) * path.c * c : 0;
          };
          Output grad("grad_hidden", h, w, c), sums("sums", int64_t(tasks) * 2 * c), dots("dots", int64_t(tasks) * 2);
          Output up_weight("up's weights", weights_size(with_up, up));
          Output down_weight("down's weights", weights_size(with_down, down));
          Output outer("outer", kept && with_up ? int64_t(up.c) * c : 0);
          const int64_t pixels = int64_t(kBatch) * h * w;
          const Values gy(pixels * panel_stride(up.c)), made(pixels * panel_stride(c));
          in_both(backward, name + text({{" kept", kept}}), {&grad, &sums, &dots, &up_weight, &down_weight, &outer},
                  [&](auto zero, Counts& counts) {
                    using T = decltype(zero);
                    const auto path = [&](const PathValues& values, bool there, const Output& weight, bool shuts) {
                      TrainPathBackward<T> made_of = {};
                      made_of.output = output_of<T>(values.raw, values.norm, true, nullptr);
                      made_of.grad = there ? values.grad.template data<T>() : nullptr;
                      made_of.weight = values.weight.template data<T>();
                      made_of.gain = values.norm.gain.template data<T>();
                      made_of.slope = values.norm.slope.template data<T>();
                      made_of.mean_grad = values.norm.mean_grad.template data<T>();
                      made_of.transposed = values.transposed.template get<T>();
                      made_of.grad_weight = weight.data<T>();
                      made_of.open = shuts ? kOpen : nullptr, made_of.c = values.c, made_of.stride = values.stride;
                      return made_of;
                    };
                    TrainPathsBackwardJob<T> job = {};
                    job.hidden = of.hidden<T>();
                    job.up = path(up, with_up, up_weight, false), job.down = path(down, with_down, down_weight, true);
                    if (kept && with_up) job.up.kept_gy = gy.data<T>(), job.up.kept_h = made.data<T>();
                    job.grad_keep = bits % 3 != 1 ? of.grad_keep.data<T>() : nullptr;
                    job.hidden_weight = of.hidden_weight.data<T>();
                    job.mean = of.norm.mean.data<T>(), job.invstd = of.norm.invstd.data<T>();
                    job.grad_hidden = grad.data<T>(), job.sums = sums.data<T>(), job.dots = dots.data<T>();
                    job.band_rows = kBandRows, job.macs = &counts.macs;
                    run_tasks<T>(kernels_in<T>().paths_backward, job, tasks);
                    if (!kept || !with_up) return;
                    const TrainOuterJob<T> last = {gy.data<T>(), made.data<T>(), outer.data<T>(), up.c,
                                                   c, kSamples, kListed, h * w};
                    run_tasks<T>(kernels_in<T>().outer, last, int(ceil_div(up.c, kOuterRows)));
                  });
        }
      }
}

// --- aggregation, gates, loss --------------------------------------------------------------------------------------

void check_aggregate_backward() {
  Report report{"aggregate", 1e-4};  // a sum of 600 products may all but cancel
  for (const auto& [h, w] : {std::pair{2, 2}, {2, 18}, {14, 10}, {26, 36}, {7, 5}, {1, 1}})
    for (int c : {4, 8, 24, 600})
      for (int which = 0; which < 8; ++which) {
        const bool has_up = (which & 4) && h % 2 == 0 && w % 2 == 0;
        if (c > 24 && h * w > 150) continue;
        const int64_t size = int64_t(h) * w * c, up_size = has_up ? size / 4 : 0;
        const Uniform grad(size), down(size), keep(size), up(std::max<int64_t>(up_size, 1));
        Output grad_down("down", which & 1 ? size : 0), grad_keep("keep", which & 2 ? size : 0), grad_up("up", up_size);
        const int tasks = cuts::pair_tasks(h, w, c);
        Output sums("sums", int64_t(tasks) * kPaths);
        in_both(report, text({{"h", h}, {"w", w}, {"c", c}, {"sources", which}}),
                {&grad_down, &grad_keep, &grad_up, &sums}, [&](auto zero, Counts&) {
                  using T = decltype(zero);
                  std::vector<double> made(size_t(tasks) * kPaths);
                  AggregateBackwardJob<T> job = {};
                  job.grad = grad.data<T>();
                  job.sources = {down.data<T>(), keep.data<T>(), up.data<T>(), which & 1 ? T(0.75) : 0,
                                 which & 2 ? T(0.3125) : 0, has_up ? T(0.625) : 0};
                  job.grad_down = grad_down.data<T>(), job.grad_keep = grad_keep.data<T>();
                  job.grad_up = grad_up.data<T>(), job.sums = made.data(), job.h = h, job.w = w, job.c = c;
                  run_tasks<T>(kernels_in<T>().aggregate, job, tasks);
                  std::transform(made.begin(), made.end(), sums.data<T>(), [](double v) { return T(v); });
                });
      }
}

void check_gate() {
  Report report{"gate"};
  for (const auto& [h_in, w_in] : {std::pair{1, 1}, {4, 4}, {7, 5}, {13, 9}, {34, 66}})
    for (int c_in : {8, 24, 136})
      for (bool small : {false, true}) {
        if ((small && (h_in < 4 || w_in < 4)) || (c_in > 24 && h_in * w_in > 150)) continue;
        const int h = gate_side(h_in, small), w = gate_side(w_in, small), c = c_in / 2, parts = 3;
        const Map x(h_in, w_in, c_in, true), y(h, w, c, true);  // a gate sees all samples
        const Norm norm(c);
        const Uniform grad(int64_t(kBatch) * c);
        const PointwiseValues transposed(c, c_in);
        const int tasks = kBatch * int(ceil_div(h, kBandRows));
        Output quarter("quarter", small ? int64_t(kBatch) * h * w * c_in : 0);
        Output pool("pool", int64_t(tasks) * kPoolSums * c), grad_x("grad_x", int64_t(kBatch) * h_in * w_in * c_in);
        Output weight("grad_weight", int64_t(parts) * c * c_in);
        in_both(report, text({{"h", h_in}, {"w", w_in}, {"c", c_in}, {"small", small}}),
                {&quarter, &pool, &grad_x, &weight}, [&](auto zero, Counts& counts) {
                  using T = decltype(zero);
                  const GateQuarterJob<T> first = {x.data<T>(), quarter.data<T>(), h_in, w_in, h, w, c_in, kBandRows};
                  if (small) run_tasks<T>(kernels_in<T>().gate_quarter, first, tasks);
                  const GatePoolJob<T> second = {y.raw<T>(), norm.scale.data<T>(), norm.shift.data<T>(),
                                                 norm.mean.data<T>(), pool.data<T>(), h, w, c, kBandRows};
                  run_tasks<T>(kernels_in<T>().gate_pool, second, tasks);
                  GateProductJob<T> job = {};
                  job.x = x.data<T>(), job.y = y.raw<T>(), job.grad = grad.data<T>();
                  job.scale = norm.scale.data<T>(), job.shift = norm.shift.data<T>(), job.mean = norm.mean.data<T>();
                  job.gain = norm.gain.data<T>(), job.slope = norm.slope.data<T>();
                  job.mean_grad = norm.mean_grad.data<T>(), job.transposed = transposed.get<T>();
                  job.grad_x = grad_x.data<T>(), job.grad_weight = weight.data<T>();
                  job.n = kBatch, job.h_in = h_in, job.w_in = w_in, job.h = h, job.w = w;
                  job.c_in = c_in, job.c_out = c, job.parts = parts, job.small = small, job.macs = &counts.macs;
                  run_tasks<T>(kernels_in<T>().gate_product, job, parts);
                });
      }
}

void check_loss() {
  Report report{"loss"};
  constexpr int kIgnored = 255;
  for (const auto& [h, w] : {std::pair{1, 1}, {2, 3}, {7, 5}, {19, 23}})
    for (int k : {1, 2, 19})
      for (int factor : {1, 2, 4})
        for (bool weighted : {false, true}) {
          const int out_h = factor * h - (factor > 1), out_w = factor * w;
          const Uniform logits(int64_t(kBatch) * h * w * k, 4);
          Uniform weight(k, 0.5);
          for (int c = 0; c < k; ++c) weight.set(c, 1 + weight.data<double>()[c]);
          std::vector<int64_t> labels(size_t(kBatch) * out_h * out_w);
          for (size_t i = 0; i < labels.size(); ++i) labels[i] = i % 7 == 3 ? kIgnored : int64_t(i * 5 % size_t(k));
          const int bands = cuts::loss_bands(h), tasks = kBatch * bands;
          Output gradient("gradient", int64_t(kBatch) * h * w * k), losses("losses", tasks);
          in_both(report, text({{"h", h}, {"w", w}, {"k", k}, {"factor", factor}, {"weighted", weighted}}),
                  {&gradient, &losses}, [&](auto zero, Counts&) {
                    using T = decltype(zero);
                    std::vector<T> edges(size_t(tasks) * w * k);
                    std::vector<double> sums(static_cast<size_t>(tasks));
                    std::vector<int64_t> strays(static_cast<size_t>(tasks));
                    UpsampledLossJob<T> job = {};
                    job.logits = logits.data<T>(), job.labels = labels.data();
                    job.weight = weighted ? weight.data<T>() : nullptr;
                    job.gradient = gradient.data<T>(), job.edges = edges.data(), job.losses = sums.data();
                    job.strays = strays.data(), job.n = kBatch, job.h = h, job.w = w, job.k = k;
                    job.factor = factor, job.out_h = out_h, job.out_w = out_w, job.ignore_index = kIgnored;
                    run_tasks<T>(table_in<T>().upsampled_loss, job, tasks);
                    std::transform(sums.begin(), sums.end(), losses.data<T>(), [](double v) { return T(v); });
                    for (int64_t stray : strays)
                      if (stray != kIgnored) report.fail("labels", "one counts as neither a class nor ignored");
                  });
        }
}

}  // namespace
}  // namespace dynroute

int main() {
  for (const bool narrow : {false, true}) {
    dynroute::narrow = narrow;
    dynroute::check_forward();
    dynroute::check_norm();
    dynroute::check_product();
    dynroute::check_depthwise();
    dynroute::check_paths();
    dynroute::check_gate();
  }
  dynroute::check_aggregate_backward();
  dynroute::check_loss();
  if (dynroute::failures) std::printf("%d failures\n", dynroute::failures);
  return dynroute::failures ? 1 : 0;
}
