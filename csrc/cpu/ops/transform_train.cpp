// transform_train and its backward: a chain of one stage without a depthwise.
#include <torch/csrc/stable/library.h>

#include "train_stages.h"

namespace dynroute {
namespace {

void check_transform(const std::string& op, const Tensor& x, const Tensor& weight, const std::vector<Tensor>& norms,
                     ScalarType type, int64_t stride) {
  check(op + ": x", x, type, {-1, -1, -1, -1});
  check_channels(op + ": x", x.size(1), 8);
  require(x.size(2) > 0 && x.size(3) > 0, op + ": x: wanted a map of at least 1x1, got " + shape_text(x.sizes()));
  require(stride == 1 || stride == 2, op + ": stride: wanted 1 or 2, got " + std::to_string(stride));
  check(op + ": weight", weight, type, {-1, x.size(1), 1, 1});
  check_channels(op + ": weight", weight.size(0), 4);
  for (const Tensor& norm : norms)
    check(op + ": gamma, beta, running_mean, running_var", norm, type, {weight.size(0)});
}

Forward forward_op(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& beta,
                   const Tensor& running_mean, const Tensor& running_var, std::optional<Tensor> open, int64_t stride,
                   bool relu_input, bool frozen, std::string group, double eps, bool narrow) {
  const std::string op = "transform_train";
  const ScalarType type = check_floating(op + ": x", x);
  check_narrow(op, narrow, type);
  check_transform(op, x, weight, {gamma, beta, running_mean, running_var}, type, stride);
  const Mask mask(op + ": open", open, x.size(0));
  const ChainOptions options = {int(stride), relu_input, false, true, frozen, narrow, eps, {op, group, frozen}};
  const auto run = [&](auto t) {
    const std::vector<Tensor> none, weights = {weight}, gammas = {gamma}, betas = {beta}, means = {running_mean},
                                    variances = {running_var};
    return run_forward<decltype(t)>(x, {none, weights, gammas, betas, &means, &variances}, mask, options);
  };
  return type == ScalarType::Double ? run(double{}) : run(float{});
}

std::tuple<Tensor, Tensor> backward_op(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& gamma,
                                       const Tensor& beta, const Tensor& raw, const Tensor& stats,
                                       std::optional<Tensor> open, int64_t stride, bool relu_input, bool frozen,
                                       std::string group, bool narrow, std::vector<bool> wanted) {
  const std::string op = "transform_train_backward";
  const ScalarType type = check_floating(op + ": x", x);
  check_narrow(op, narrow, type);
  check_transform(op, x, weight, {gamma, beta}, type, stride);
  require(wanted.size() == 2, op + ": wanted: wanted 2 booleans, got " + std::to_string(wanted.size()));
  const int64_t n = x.size(0), c = weight.size(0);
  const int64_t h = strided(int(x.size(2)), int(stride)), w = strided(int(x.size(3)), int(stride));
  check(op + ": grad", grad, type, {n, c, h, w});
  check(op + ": raw", raw, raw_type(narrow, type), {n, c, h, w});
  check(op + ": stats", stats, type, {1, kStatistics, c});
  const Tensor raw_maps = nhwc(raw), statistics = torch::stable::contiguous(stats);
  const Mask mask(op + ": open", open, n);
  const ChainOptions options = {int(stride), relu_input, false, true, frozen, narrow, 0, {op, group, frozen}};
  const std::vector<Tensor> none, weights = {weight}, gammas = {gamma}, betas = {beta};
  const auto run = [&](auto t) {
    return run_backward<decltype(t)>(grad, x, {none, weights, gammas, betas, nullptr, nullptr}, raw_maps, statistics,
                                     mask, options, {wanted[0], false, wanted[1]});
  };
  return type == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  m.impl("transform_train", TORCH_BOX(&dynroute::forward_op));
  m.impl("transform_train_backward", TORCH_BOX(&dynroute::backward_op));
}
