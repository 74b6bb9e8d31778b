// sepconv_train and its backward: check, and run the chain.
#include <torch/csrc/stable/library.h>

#include "train_stages.h"

namespace dynroute {
namespace {

Forward forward_op(const Tensor& x, std::vector<Tensor> depthwise, std::vector<Tensor> pointwise,
                   std::vector<Tensor> gamma, std::vector<Tensor> beta, std::vector<Tensor> running_mean,
                   std::vector<Tensor> running_var, std::optional<Tensor> open, int64_t stride, bool residual,
                   bool final_relu, bool frozen, std::string group, double eps, bool narrow) {
  const std::string op = "sepconv_train";
  const TrainTypes types = train_types_on_cpu(op, x, narrow);
  check_stages(op, x, depthwise, pointwise, {&gamma, &beta, &running_mean, &running_var}, types, stride);
  check_residual(op, x, pointwise, stride, residual);
  const Mask mask(op + ": open", open, x.size(0));
  const ChainOptions options = {int(stride), false, residual, final_relu, frozen, types.raw, eps, {op, group, frozen}};
  const auto run = [&](auto t) {
    return run_forward<decltype(t)>(x, {depthwise, pointwise, gamma, beta, &running_mean, &running_var}, mask, options);
  };
  return types.map == ScalarType::Double ? run(double{}) : run(float{});
}

std::tuple<Tensor, Tensor> backward_op(const Tensor& grad, const Tensor& x, std::vector<Tensor> depthwise,
                                       std::vector<Tensor> pointwise, std::vector<Tensor> gamma,
                                       std::vector<Tensor> beta, const Tensor& raw, const Tensor& stats,
                                       std::optional<Tensor> open, int64_t stride, bool residual, bool final_relu,
                                       bool frozen, std::string group, bool narrow, std::vector<bool> wanted) {
  const std::string op = "sepconv_train_backward";
  const TrainTypes types = train_types_on_cpu(op, x, narrow);
  check_stages(op, x, depthwise, pointwise, {&gamma, &beta}, types, stride);
  check_residual(op, x, pointwise, stride, residual);
  check_wanted(op, wanted, 3);
  const int64_t n = x.size(0), h = strided(int(x.size(2)), int(stride)), w = strided(int(x.size(3)), int(stride));
  const int64_t stages = int64_t(depthwise.size()), c = pointwise[0].size(0);
  check_chain_backward(op, grad, raw, stats, {n, c, h, w}, stages, types);
  const Tensor raw_maps = nhwc(raw), statistics = torch::stable::contiguous(stats);
  const Mask mask(op + ": open", open, n);
  const ChainOptions options = {int(stride), false, residual, final_relu, frozen, types.raw, 0, {op, group, frozen}};
  const auto run = [&](auto t) {
    return run_backward<decltype(t)>(grad, x, {depthwise, pointwise, gamma, beta, nullptr, nullptr}, raw_maps,
                                     statistics, mask, options, wanted);
  };
  return types.map == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  m.impl("sepconv_train", TORCH_BOX(&dynroute::forward_op));
  m.impl("sepconv_train_backward", TORCH_BOX(&dynroute::backward_op));
}
