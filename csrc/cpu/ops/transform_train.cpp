// transform_train and its backward: a chain of one stage without a depthwise.
#include <torch/csrc/stable/library.h>

#include "train_stages.h"

namespace dynroute {
namespace {

Forward forward_op(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& beta,
                   const Tensor& running_mean, const Tensor& running_var, std::optional<Tensor> open, int64_t stride,
                   bool relu_input, bool frozen, std::string group, double eps, bool narrow) {
  const std::string op = "transform_train";
  const TrainTypes types = train_types_on_cpu(op, x, narrow);
  check_transform_train(op, x, weight, {gamma, beta, running_mean, running_var}, types, stride);
  const Mask mask(op + ": open", open, x.size(0));
  const ChainOptions options = {int(stride), relu_input, false, true, frozen, types.raw, eps, {op, group, frozen}};
  const auto run = [&](auto t) {
    const std::vector<Tensor> none, weights = {weight}, gammas = {gamma}, betas = {beta}, means = {running_mean},
                                    variances = {running_var};
    return run_forward<decltype(t)>(x, {none, weights, gammas, betas, &means, &variances}, mask, options);
  };
  return types.map == ScalarType::Double ? run(double{}) : run(float{});
}

std::tuple<Tensor, Tensor> backward_op(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& gamma,
                                       const Tensor& beta, const Tensor& raw, const Tensor& stats,
                                       std::optional<Tensor> open, int64_t stride, bool relu_input, bool frozen,
                                       std::string group, bool narrow, std::vector<bool> wanted) {
  const std::string op = "transform_train_backward";
  const TrainTypes types = train_types_on_cpu(op, x, narrow);
  check_transform_train(op, x, weight, {gamma, beta}, types, stride);
  check_wanted(op, wanted, 2);
  const int64_t n = x.size(0), c = weight.size(0);
  const int64_t h = strided(int(x.size(2)), int(stride)), w = strided(int(x.size(3)), int(stride));
  check_chain_backward(op, grad, raw, stats, {n, c, h, w}, 1, types);
  const Tensor raw_maps = nhwc(raw), statistics = torch::stable::contiguous(stats);
  const Mask mask(op + ": open", open, n);
  const ChainOptions options = {int(stride), relu_input, false, true, frozen, types.raw, 0, {op, group, frozen}};
  const std::vector<Tensor> none, weights = {weight}, gammas = {gamma}, betas = {beta};
  const auto run = [&](auto t) {
    return run_backward<decltype(t)>(grad, x, {none, weights, gammas, betas, nullptr, nullptr}, raw_maps, statistics,
                                     mask, options, {wanted[0], false, wanted[1]});
  };
  return types.map == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  m.impl("transform_train", TORCH_BOX(&dynroute::forward_op));
  m.impl("transform_train_backward", TORCH_BOX(&dynroute::backward_op));
}
