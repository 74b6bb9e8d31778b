// The operators on CUDA tensors: their calls' launches on the current stream of their device.
#include "cuda/network/launch.h"
#include "cuda/network/on_device.h"
#include "loss_call.h"
#include "op_calls.h"

namespace dynroute::cuda {
namespace {

// make(device, limits) -> OpCall
template <class Make>
Tensors run(const char* op, const Tensor& first, const Make& make) {
  require(first.is_cuda(), std::string(op) + ": wanted tensors on a GPU");
  const OnDevice device(first);
  const OpCall call = make(Device(DeviceType::CUDA, first.get_device_index()), device_limits(device.index()));
  run_launches(call.launches, device.index(), call.dtype, device.stream());
  return call.outs;
}

Tensor sepconv_op(const Tensor& x, Tensors depthwise, Tensors pointwise, Tensors scale, Tensors shift, Maybe open,
                  int64_t stride, bool residual, bool final_relu) {
  return run("sepconv", x, [&](const Device& device, const DeviceLimits& limits) {
    return sepconv_call(x, depthwise, pointwise, scale, shift, open, stride, residual, final_relu, device, limits);
  })[0];
}
Tensor transform_op(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift, Maybe open,
                    int64_t stride) {
  return run("transform", x, [&](const Device& device, const DeviceLimits& limits) {
    return transform_call(x, weight, scale, shift, open, stride, device, limits);
  })[0];
}
Tensor aggregate_op(Maybe down, Maybe keep, Maybe up, Maybe alphas) {
  const Maybe& first = down ? down : keep ? keep : up;
  require(first.has_value(), "aggregate: down, keep, up: wanted at least one source, got none");
  return run("aggregate", *first, [&](const Device& device, const DeviceLimits& limits) {
    return aggregate_call(down, keep, up, alphas, device, limits);
  })[0];
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
Gradients aggregate_backward_op(const Tensor& grad, Maybe down, Maybe keep, Maybe up, Maybe alphas,
                                std::vector<bool> wanted) {
  const Tensors outs = run("aggregate_backward", grad, [&](const Device& device, const DeviceLimits& limits) {
    return aggregate_backward_call(grad, down, keep, up, alphas, wanted, device, limits);
  });
  return {outs[0], outs[1], outs[2], outs[3]};
}

Tensor gate_op(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift, const Tensor& fc_weight,
               const Tensor& fc_bias, std::string activation, bool small, Maybe present) {
  return run("gate", x, [&](const Device& device, const DeviceLimits& limits) {
    return gate_call(x, weight, scale, shift, fc_weight, fc_bias, activation, small, present, device, limits);
  })[0];
}
using Routes = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
Routes route_op(const Tensor& alphas, const Tensor& present, const Tensor& path_exists, const Tensor& slots) {
  const Tensors outs = run("route", alphas, [&](const Device& device, const DeviceLimits& limits) {
    return route_call(alphas, present, path_exists, slots, device, limits);
  });
  return {outs[0], outs[1], outs[2], outs[3], outs[4], outs[5], outs[6], outs[7]};
}

using LossAndGradient = std::tuple<Tensor, Tensor>;
LossAndGradient upsampled_cross_entropy_op(const Tensor& logits, const Tensor& labels, int64_t factor, Maybe weight,
                                           int64_t ignore_index, bool with_gradient) {
  const Tensors outs = run("upsampled_cross_entropy", logits, [&](const Device& device, const DeviceLimits& limits) {
    return upsampled_cross_entropy_call(logits, labels, factor, weight, ignore_index, with_gradient, device, limits);
  });
  return {outs[0], outs[1]};
}

}  // namespace
}  // namespace dynroute::cuda

STABLE_TORCH_LIBRARY_IMPL(dynroute, CUDA, m) {
  m.impl("sepconv", TORCH_BOX(&dynroute::cuda::sepconv_op));
  m.impl("transform", TORCH_BOX(&dynroute::cuda::transform_op));
  m.impl("gate", TORCH_BOX(&dynroute::cuda::gate_op));
  m.impl("route", TORCH_BOX(&dynroute::cuda::route_op));
  m.impl("aggregate", TORCH_BOX(&dynroute::cuda::aggregate_op));
  m.impl("aggregate_backward", TORCH_BOX(&dynroute::cuda::aggregate_backward_op));
  m.impl("upsampled_cross_entropy", TORCH_BOX(&dynroute::cuda::upsampled_cross_entropy_op));
}
