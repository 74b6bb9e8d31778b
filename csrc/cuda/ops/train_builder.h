// Puts together a call of a training operator: what its kernels are told of the tensors that it was given, the launches
// that its directions have in common, and where gradients go.
#pragma once
#include "bindings/gather.h"
#include "bindings/train_checks.h"
#include "cuda/kernels/train_shapes.h"
#include "op_calls.h"

namespace dynroute::cuda {

// What stands in a list of launches where processes exchange what they found; no kernel.
constexpr const char* kGather = "gather";
struct GatherParams {
  char group[256];
  const double* mine;  // [count]
  double* everyone;    // [processes][count]
  int64_t count;
};

struct Affine {
  float *scale, *shift;
};

// A BatchNorm of a call, and its rows of `stats`.
struct Norm {
  const float *gamma, *beta, *running_mean, *running_var;  // the running ones in forward alone
  float* stats;                                            // [3][c]
  Affine affine;
  int c;
  const float* mean() const { return stats + kMean * c; }
  const float* invstd() const { return stats + kInvstd * c; }
};

class TrainBuilder : public CallBuilder {
 public:
  // frozen: statistics are the running ones, and nobody else's are asked for.
  TrainBuilder(const char* op, const TrainTypes& types, const Device& device, const DeviceLimits& limits, int64_t n,
               const std::string& group, bool frozen)
      : CallBuilder(device, limits, types.map), op_(op), n_(int(n)), group_(frozen ? "" : group), frozen_(frozen) {
    prepare_.n = int(n);
    if (group_.empty()) return;
    require(group_.size() < sizeof(GatherParams::group),
            std::string(op) + ": group: wanted a name of fewer than 256 bytes");
    processes_ = processes_of(op, group_);
  }
  int n() const { return n_; }
  const float* floats_of(const Tensor& tensor) { return static_cast<const float*>(values(tensor)); }
  const float* floats_of(const Maybe& tensor) { return tensor ? floats_of(*tensor) : nullptr; }
  const void* map_of(const Maybe& tensor) { return tensor ? map(*tensor) : nullptr; }
  float* some(int64_t count) { return floats(std::max<int64_t>(count, 1)); }
  void* map_scratch(int64_t h, int64_t w, int64_t c) {
    return scratch(std::max<int64_t>(n_ * h * w * c, 1) * bytes_of(call_.dtype));
  }
  void* map_out(int64_t n, int64_t c, int64_t h, int64_t w) { return out({n, c, h, w}); }
  float* float_out(std::initializer_list<int64_t> sizes) { return static_cast<float*>(out(sizes, ScalarType::Float)); }

  // What `train_prepare` makes, in scratch: a product's weights, or their transpose,
  Matrix product(const Tensor& weight, bool transposed) {
    const int rows = int(weight.size(0)), columns = int(weight.size(1));
    const int n = transposed ? columns : rows, k = transposed ? rows : columns;
    void* const to = scratch(int64_t(padded(n)) * padded(k) * bytes_of(call_.dtype));
    TrainMatrix& made = prepare_.matrix[matrices_++];
    made = {floats_of(weight), {to, floats(padded(n)), k, n, padded(k), padded(n)}, transposed};
    return made.to;
  }
  // taps,
  const float* taps(const Tensor& weight) {
    TrainTaps& made = prepare_.taps[taps_++];
    made = {floats_of(weight), floats(9 * weight.size(0)), int(weight.size(0))};
    return made.to;
  }
  // lists of samples, by a mask, with zeros in `cleared` for those that it leaves out, or by alphas.
  TrainSamples masked(const Maybe& open, void* cleared = nullptr, int64_t cleared_size = 0) {
    if (!open || n_ == 0) return {};
    prepare_.mask = static_cast<const uint8_t*>(values(*open));
    prepare_.cleared = cleared, prepare_.cleared_size = cleared_size;
    return prepare_.open = listed();
  }
  const TrainPrepareParams& shares(const Tensor& alphas, double bridge, bool skip, bool has_up, bool has_down) {
    prepare_.shares = {floats_of(alphas), some(n_), some(n_), some(n_), some(n_),
                       float(bridge),     skip,     has_up,   has_down};
    prepare_.open = listed();
    if (has_up) prepare_.up = listed();
    if (has_down) prepare_.down = listed();
    return prepare_;
  }
  void launch_prepare() { start("train_prepare", train_prepare_shape, prepare_); }

  // A BatchNorm, to be made in forward;
  Norm norm(const Tensor& gamma, const Tensor& beta, const Tensor& mean, const Tensor& var, float* stats) {
    const int c = int(gamma.size(0));
    return {floats_of(gamma), floats_of(beta), floats_of(mean), floats_of(var), stats, {floats(c), floats(c)}, c};
  }
  // or, in backward, as forward left it.
  Norm norm(const Tensor& gamma, const Tensor& beta, const float* stats) {
    const int c = int(gamma.size(0));
    TrainAffine& made = prepare_.affine[affines_++];
    made = {floats_of(gamma), floats_of(beta), stats, floats(c), floats(c), c};
    return {made.gamma, made.beta, nullptr, nullptr, const_cast<float*>(stats), {made.scale, made.shift}, c};
  }

  template <class ShapeOf, class Params>
  void start(const char* kernel, ShapeOf shape_of, const Params& params) {
    launch(op_, kernel, shape_of, params);
  }

  // A product that is to be made, and its BatchNorm.
  struct Forward {
    TrainSource source;
    const float* taps;
    Matrix product;
    void* raw;
    Norm norm;
    TrainSamples samples;
    int stride, h, w;
  };
  // Raw outputs, statistics, scales and shifts of up to two.
  void forward(const std::vector<Forward>& products, double eps) {
    TrainForwardParams made = {};
    TrainNormParams norms = {};
    made.n = norms.n = n_, norms.eps = float(eps);
    for (size_t i = 0; i < products.size(); ++i) {
      const Forward& one = products[i];
      float* const partials =
          some(n_ * int64_t(train_tiles(one.h, one.w, bytes_of(call_.dtype))) * kTileSums * one.product.n);
      made.job[i] = {one.source, one.taps, one.product, one.raw, partials, one.samples, one.stride, one.h, one.w};
      const Norm& of = one.norm;
      norms.job[i] = {partials,
                      one.samples,
                      of.gamma,
                      of.beta,
                      of.running_mean,
                      of.running_var,
                      of.stats,
                      of.affine.scale,
                      of.affine.shift,
                      nullptr,
                      nullptr,
                      of.c,
                      one.h,
                      one.w,
                      frozen_,
                      {},
                      {}};
    }
    if (products.empty()) return;
    start("train_forward", train_forward_shape, made);
    exchange("train_norm", train_norm_shape, norms);
  }

  // Where the gradients of weights go: one after the other, in the order in which they ask for room.
  void flat(int64_t size) { next_ = float_out({size}); }
  float* room(int64_t size) { return next_ ? std::exchange(next_, next_ + size) : nullptr; }

  // What a BatchNorm's backward is made of.
  struct Sums {
    const float* partials;  // null: zeros
    int runs, rows, row;
  };
  struct Backward {
    TrainGradient gradient;  // without what is made here
    Norm norm;
    Sums sums;
    TrainSamples samples;
    float *grad_gamma, *grad_beta;
  };
  // The gradients of raw outputs, made ready to be read.
  std::vector<TrainGradient> backward(const std::vector<Backward>& norms) {
    TrainNormBackwardParams params = {};
    std::vector<TrainGradient> made;
    params.n = n_;
    for (size_t i = 0; i < norms.size(); ++i) {
      const Backward& one = norms[i];
      const int c = one.norm.c;
      TrainGradient gradient = one.gradient;
      float *const gain = floats(c), *const slope = floats(c), *const mean_grad = floats(c);
      gradient.gain = gain, gradient.slope = slope, gradient.mean_grad = mean_grad;
      params.job[i] = {one.sums.partials,
                       one.samples,
                       one.norm.gamma,
                       one.norm.invstd(),
                       gain,
                       slope,
                       mean_grad,
                       one.grad_gamma,
                       one.grad_beta,
                       nullptr,
                       nullptr,
                       c,
                       gradient.h * gradient.w,
                       one.sums.runs,
                       one.sums.rows,
                       one.sums.row,
                       frozen_};
      made.push_back(gradient);
    }
    if (!norms.empty()) exchange("train_norm_backward", train_norm_backward_shape, params);
    return made;
  }

  // The gradient of a product's weights; `at`: which of a launch's two.
  void outer(TrainOuterParams& params, int at, const TrainGradient& gradient, const TrainSource& source,
             const float* taps, int stride, const TrainSamples& samples, float* grad) {
    const int tiles = train_tiles(gradient.h, gradient.w, bytes_of(call_.dtype));
    const int splits = outer_splits(n_, tiles, gradient.c, source.c), size = gradient.c * source.c;
    float* const partials = floats(int64_t(splits) * size);
    params.n = n_, params.job[at] = {gradient, source, taps, partials, samples, stride, splits};
    reduce({partials, grad, {}, 1, splits, size, size, 0});
  }
  void reduce(const TrainReduction& one) { reductions_.list[reduced_++] = one; }
  // Zeros, where there is nothing to add up.
  void clear(float* grad, int size) { reduce({some(1), grad, {}, 1, 0, size, 0, 0}); }
  void launch_reduce() {
    reductions_.n = n_;
    if (reduced_ > 0) start("train_reduce", train_reduce_shape, reductions_);
  }

 private:
  // A launch that ends BatchNorms; where other processes share them, it is one that says what was found here, and, when
  // everyone's is there, another.
  template <class ShapeOf, class Params>
  void exchange(const char* kernel, ShapeOf shape_of, Params params) {
    if (group_.empty()) return start(kernel, shape_of, params);
    int count = 0;
    for (const auto& job : params.job) count += job.c > 0 ? 1 + 2 * job.c : 0;
    const auto doubles = [&](int64_t values) {
      return static_cast<double*>(scratch(values * int64_t(sizeof(double))));
    };
    double *const mine = doubles(count), *const everyone = doubles(int64_t(processes_) * count);
    int at = 0;
    for (auto& job : params.job) job.mine = mine + at, at += job.c > 0 ? 1 + 2 * job.c : 0;
    start(kernel, shape_of, params);
    GatherParams gather = {};
    group_.copy(gather.group, sizeof(gather.group) - 1);
    gather.mine = mine, gather.everyone = everyone, gather.count = count;
    const auto* bytes = reinterpret_cast<const unsigned char*>(&gather);
    call_.launches.push_back({kGather, {1, 1, 0}, {bytes, bytes + sizeof(gather)}});
    for (auto& job : params.job) job.everyone = everyone + (job.mine - mine);
    params.processes = processes_, params.stride = count;
    start(kernel, shape_of, params);
  }
  TrainSamples listed() {
    if (n_ == 0) return {};  // all of them
    return {{ints(1), ints(n_)}, static_cast<uint8_t*>(scratch(n_))};
  }
  const char* const op_;
  const int n_;
  const std::string group_;
  const bool frozen_;
  int processes_ = 1;
  TrainPrepareParams prepare_ = {};
  TrainReduceParams reductions_ = {};
  int matrices_ = 0, taps_ = 0, affines_ = 0, reduced_ = 0;
  float* next_ = nullptr;
};

}  // namespace dynroute::cuda
