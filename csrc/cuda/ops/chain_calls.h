// sepconv_train and transform_train on CUDA: arguments checked, and run as chains.
#pragma once
#include "train_chain.h"

namespace dynroute::cuda {

inline OpCall sepconv_train_call(const Device& device, const DeviceLimits& limits, const Tensor& x,
                                 const Tensors& depthwise, const Tensors& pointwise, const Tensors& gamma,
                                 const Tensors& beta, const Tensors& running_mean, const Tensors& running_var,
                                 const Maybe& open, int64_t stride, bool residual, bool final_relu, bool frozen,
                                 const std::string& group, double eps, bool narrow) {
  const char* const op = "sepconv_train";
  const TrainTypes types = train_types_on_gpu(op, x, narrow, device);
  check_stages(op, x, depthwise, pointwise, {&gamma, &beta, &running_mean, &running_var}, types, stride);
  check_residual(op, x, pointwise, stride, residual);
  check_open(op, open, x.size(0), types);
  return chain_forward_call(op, x, depthwise, pointwise, gamma, beta, running_mean, running_var, open,
                            {stride, false, residual, final_relu, frozen, group}, eps, types, limits);
}

inline OpCall sepconv_train_backward_call(const Device& device, const DeviceLimits& limits, const Tensor& grad,
                                          const Tensor& x, const Tensors& depthwise, const Tensors& pointwise,
                                          const Tensors& gamma, const Tensors& beta, const Tensor& raw,
                                          const Tensor& stats, const Maybe& open, int64_t stride, bool residual,
                                          bool final_relu, bool frozen, const std::string& group, bool narrow,
                                          const std::vector<bool>& wanted) {
  const char* const op = "sepconv_train_backward";
  const TrainTypes types = train_types_on_gpu(op, x, narrow, device);
  check_stages(op, x, depthwise, pointwise, {&gamma, &beta}, types, stride);
  check_residual(op, x, pointwise, stride, residual);
  check_open(op, open, x.size(0), types);
  check_wanted(op, wanted, 3);
  const int64_t h = strided(int(x.size(2)), int(stride)), w = strided(int(x.size(3)), int(stride));
  check_chain_backward(op, grad, raw, stats, {x.size(0), pointwise[0].size(0), h, w}, int64_t(depthwise.size()), types);
  return chain_backward_call(op, grad, x, depthwise, pointwise, gamma, beta, raw, stats, open,
                             {stride, false, residual, final_relu, frozen, group}, wanted, types, limits);
}

inline OpCall transform_train_call(const Device& device, const DeviceLimits& limits, const Tensor& x,
                                   const Tensor& weight, const Tensor& gamma, const Tensor& beta,
                                   const Tensor& running_mean, const Tensor& running_var, const Maybe& open,
                                   int64_t stride, bool relu_input, bool frozen, const std::string& group, double eps,
                                   bool narrow) {
  const char* const op = "transform_train";
  const TrainTypes types = train_types_on_gpu(op, x, narrow, device);
  check_transform_train(op, x, weight, {gamma, beta, running_mean, running_var}, types, stride);
  check_open(op, open, x.size(0), types);
  return chain_forward_call(op, x, {}, {weight}, {gamma}, {beta}, {running_mean}, {running_var}, open,
                            {stride, relu_input, false, true, frozen, group}, eps, types, limits);
}

inline OpCall transform_train_backward_call(const Device& device, const DeviceLimits& limits, const Tensor& grad,
                                            const Tensor& x, const Tensor& weight, const Tensor& gamma,
                                            const Tensor& beta, const Tensor& raw, const Tensor& stats,
                                            const Maybe& open, int64_t stride, bool relu_input, bool frozen,
                                            const std::string& group, bool narrow, const std::vector<bool>& wanted) {
  const char* const op = "transform_train_backward";
  const TrainTypes types = train_types_on_gpu(op, x, narrow, device);
  check_transform_train(op, x, weight, {gamma, beta}, types, stride);
  check_open(op, open, x.size(0), types);
  check_wanted(op, wanted, 2);
  const int64_t h = strided(int(x.size(2)), int(stride)), w = strided(int(x.size(3)), int(stride));
  check_chain_backward(op, grad, raw, stats, {x.size(0), weight.size(0), h, w}, 1, types);
  return chain_backward_call(op, grad, x, {}, {weight}, {gamma}, {beta}, raw, stats, open,
                             {stride, relu_input, false, true, frozen, group}, {wanted[0], false, wanted[1]}, types,
                             limits);
}

}  // namespace dynroute::cuda
