// What the check of the training kernels (train_check.cpp) makes its jobs of, and how it compares results: three
// samples, of which two take part, in no order. The other is NaN where it would be read, and must not be written.
// What a ReLU's sign hangs on lies on a grid that both precisions compute exactly, never at 0: they agree on the sign.
#pragma once
#include "check.h"

namespace dynroute {
namespace {

constexpr int kBatch = 3, kListed = 2;
constexpr int kSamples[kListed] = {2, 0};
constexpr bool kOpen[kBatch] = {true, true, false};

int64_t panel_stride(int c) { return round_up(c, kPanel) + kPanel; }  // as the kernels'

// --- values --------------------------------------------------------------------------------------------------------

// Multiples of `unit` within the range; odd: odd multiples of half of it.
void on_grid(Values& values, double range, double unit, bool odd) {
  values.randomise(range);
  for (int64_t i = 0; i < values.size; ++i)
    values.set(i, (std::floor(values.data<double>()[i] / unit) + (odd ? 0.5 : 0)) * unit);
}

bool narrow = false;  // whether the float kernels read and write raw outputs as bfloat16
constexpr double kNarrowTolerance = 1.0 / 64;  // of what they write so: sums of values of 8 bits

bf16 upper_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return {uint16_t(bits >> 16)};
}

// A map [kBatch, h, w, c] that is read: NaN in the sample that takes no part. On the grid of 1/16, hence the same
// numbers in bfloat16.
struct Map : Values {
  Map(int h, int w, int c, bool all = false)
      : Values(int64_t(kBatch) * h * w * c), narrow_(size_t(size) * sizeof(bf16)) {
    on_grid(*this, 1.5, 1.0 / 16, false);
    const int64_t of_sample = size / kBatch;
    for (int64_t i = of_sample; i < 2 * of_sample && !all; ++i) set(i, std::nan(""));
    for (int64_t i = 0; i < size; ++i) static_cast<bf16*>(narrow_.data())[i] = upper_half(data<float>()[i]);
  }
  template <class T>
  Raw<T> raw() const {
    if (narrow && sizeof(T) == sizeof(float)) return {nullptr, static_cast<const bf16*>(narrow_.data())};
    return {data<T>(), nullptr};
  }

 private:
  check::Guarded narrow_;
};

// Where a kernel writes raw outputs: `to` itself or, narrow, memory of its own that is widened into it in the end.
template <class T>
class RawTarget {
 public:
  RawTarget(T* to, int64_t size) : to_(to), size_(size), narrow_(size_t(size) * sizeof(bf16)) {
    std::fill_n(values(), size, kNone);
  }
  ~RawTarget() {
    for (int64_t i = 0; i < size_ && is_narrow(); ++i) {
      const uint32_t bits = uint32_t(values()[i].bits) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      if (values()[i].bits != kNone.bits) to_[i] = T(value);
    }
  }
  RawOut<T> get() const {
    if (is_narrow()) return {nullptr, values()};
    return {to_, nullptr};
  }

 private:
  static constexpr bf16 kNone = {0x7fc1};  // a NaN that no kernel writes
  bool is_narrow() const { return narrow && to_ && sizeof(T) == sizeof(float); }
  bf16* values() const { return static_cast<bf16*>(narrow_.data()); }
  T* to_;
  int64_t size_;
  check::Guarded narrow_;
};

struct Uniform : Values {
  explicit Uniform(int64_t size, double scale = 1) : Values(size) { randomise(scale); }
};

// BatchNorm as scale and shift: of a map on its grid, scale * y + shift is an odd multiple of 1/256.
struct Norm {
  explicit Norm(int c) : scale(c), shift(c), mean(c, 0.5), invstd(c, 1.5), gain(c), slope(c, 0.2), mean_grad(c, 0.2) {
    on_grid(scale, 2, 1.0 / 4, true);
    on_grid(shift, 1, 1.0 / 128, true);
  }
  Values scale, shift;
  Uniform mean, invstd, gain, slope, mean_grad;
};

template <class T>
TrainOutput<T> output_of(const Map& y, const Norm& norm, bool relu, const Map* residual) {
  return {y.raw<T>(),           norm.mean.data<T>(),  norm.invstd.data<T>(),
          relu,                 norm.scale.data<T>(), norm.shift.data<T>(),
          residual ? residual->data<T>() : nullptr};
}

enum class Before { kNothing, kRelu, kNorm };

// A stage with its input, its output's BatchNorm, and the gradient behind that.
struct StageValues {
  StageValues(int h, int w, int c_in, int c_out, int stride, bool with_depthwise, Before before)
      : h(h),
        w(w),
        c_in(c_in),
        c_out(c_out),
        stride(stride),
        h_out((h - 1) / stride + 1),
        w_out((w - 1) / stride + 1),
        with_depthwise(with_depthwise),
        before(before),
        x(h, w, c_in),
        y(h_out, w_out, c_out),
        residual(h_out, w_out, c_out),
        grad(h_out, w_out, c_out),
        depthwise(9 * int64_t(c_in), 0.6),
        flipped(9 * int64_t(c_in)),
        input_norm(c_in),
        norm(c_out),
        weight(kBatch) {
    for (int tap = 0; tap < 9; ++tap)
      for (int c = 0; c < c_in; ++c) flipped.set(tap * c_in + c, depthwise.data<double>()[(8 - tap) * c_in + c]);
  }
  template <class T>
  TrainStage<T> get() const {
    TrainStage<T> stage = {};
    stage.input.x = before == Before::kNorm ? x.raw<T>() : Raw<T>{x.data<T>(), nullptr};  // else it is no raw output
    if (before == Before::kNorm) stage.input.scale = input_norm.scale.data<T>();
    if (before == Before::kNorm) stage.input.shift = input_norm.shift.data<T>();
    stage.input.relu = before != Before::kNothing;
    stage.depthwise = with_depthwise ? depthwise.data<T>() : nullptr;
    stage.c_in = c_in, stage.c_out = c_out, stage.stride = stride;
    stage.h_in = h, stage.w_in = w, stage.h_out = h_out, stage.w_out = w_out;
    stage.samples = kSamples, stage.n = kListed;
    return stage;
  }
  std::string name() const {
    return text({{"h", h}, {"w", w}, {"c_in", c_in}, {"c_out", c_out}, {"stride", stride}}) +
           text({{" depthwise", with_depthwise}, {"before", int(before)}});
  }
  const int h, w, c_in, c_out, stride, h_out, w_out;
  const bool with_depthwise;
  const Before before;
  Map x, y, residual, grad;
  Uniform depthwise;
  Values flipped;
  Norm input_norm, norm;
  Uniform weight;  // by sample
};

// --- results -------------------------------------------------------------------------------------------------------

struct Output {
  Output(const char* what, int64_t size, bool of_samples = false)
      : what(what), values(std::max<int64_t>(size, 1)), of_samples(of_samples && size > 0) {
    if (size == 0) values.set(0, 0);  // not wanted: nothing to compare
    wanted = size > 0;
  }
  // A map [kBatch, h, w, c]; only the samples that take part are written.
  Output(const char* what, int h, int w, int c) : Output(what, int64_t(kBatch) * h * w * c, true) {}
  template <class T>
  T* data() const {
    return wanted ? values.data<T>() : nullptr;
  }
  const char* what;
  Values values;
  bool of_samples, wanted = true;
};

// What takes part, in one piece; says so if anything else was written.
void compare_listed(Report& report, const std::string& name, const Values& map) {
  const int64_t of_sample = map.size / kBatch;
  Values listed(kListed * of_sample);
  for (int i = 0; i < kListed; ++i) {
    std::copy_n(map.data<float>() + kSamples[i] * of_sample, of_sample, listed.data<float>() + i * of_sample);
    std::copy_n(map.data<double>() + kSamples[i] * of_sample, of_sample, listed.data<double>() + i * of_sample);
  }
  for (int64_t i = of_sample; i < 2 * of_sample; ++i)
    if (map.data<float>()[i] != float(kUnwritten)) return report.fail(name, "a sample was written that takes no part");
  compare(report, name, listed);
}

// run(T(), counts) computes everything in one precision.
template <class Run>
void in_both(Report& report, const std::string& name, std::initializer_list<Output*> outputs, const Run& run) {
  for (Output* output : outputs)
    if (output->wanted) output->values.fill(kUnwritten);
  Counts counts[2];
  run(float(), counts[0]);
  run(double(), counts[1]);
  for (Output* output : outputs) {
    const std::string of = name + ": " + output->what;
    if (output->of_samples) compare_listed(report, of, output->values);
    else compare(report, of, output->values);
  }
  if (counts[0] != counts[1]) report.fail(name, "the counted work differs");
}

// Tasks of a job by its kernel, last first: order must not matter.
template <class T, class Job>
void run_tasks(void (*kernel)(const Job&, int), const Job& job, int tasks) {
  for (int task = tasks; task-- > 0;) kernel(job, task);
}
template <class T>
const Kernels<T>& table_in() {
  if constexpr (sizeof(T) == sizeof(float)) return DYNROUTE_CHECK::float_kernels();
  else return portable::double_kernels();
}
template <class T>
const TrainKernels<T>& kernels_in() {
  return table_in<T>().train;
}
int tasks_of(int h, int band_rows) { return kListed * int(ceil_div(h, band_rows)); }

constexpr std::pair<int, int> kSizes[] = {{1, 1}, {2, 3}, {7, 5}, {9, 34}, {4, 101}};
constexpr int kBandRows = 2;

}  // namespace
}  // namespace dynroute
