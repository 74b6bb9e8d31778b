// The operators' calls on CUDA as data for Python, made of tensors on the CPU: what the emulator runs. Part of the CPU
// library, as it needs no GPU.
#include "bind_host.h"

namespace dynroute::cuda {
namespace {

const Device kHost = Device(DeviceType::CPU);

Call sepconv_op(const Tensor& x, Tensors depthwise, Tensors pointwise, Tensors scale, Tensors shift, Maybe open,
                int64_t stride, bool residual, bool final_relu, std::vector<int64_t> device) {
  return as_call(sepconv_call(x, depthwise, pointwise, scale, shift, open, stride, residual, final_relu, kHost,
                              limits_of(device)));
}
Call transform_op(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift, Maybe open,
                  int64_t stride, std::vector<int64_t> device) {
  return as_call(transform_call(x, weight, scale, shift, open, stride, kHost, limits_of(device)));
}
Call aggregate_op(Maybe down, Maybe keep, Maybe up, Maybe alphas, std::vector<int64_t> device) {
  return as_call(aggregate_call(down, keep, up, alphas, kHost, limits_of(device)));
}

Call aggregate_backward_op(const Tensor& grad, Maybe down, Maybe keep, Maybe up, Maybe alphas, std::vector<bool> wanted,
                           std::vector<int64_t> device) {
  return as_call(aggregate_backward_call(grad, down, keep, up, alphas, wanted, kHost, limits_of(device)));
}

Call gate_op(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift, const Tensor& fc_weight,
             const Tensor& fc_bias, std::string activation, bool small, Maybe present, std::vector<int64_t> device) {
  return as_call(
      gate_call(x, weight, scale, shift, fc_weight, fc_bias, activation, small, present, kHost, limits_of(device)));
}
Call route_op(const Tensor& alphas, const Tensor& present, const Tensor& path_exists, const Tensor& slots,
              std::vector<int64_t> device) {
  return as_call(route_call(alphas, present, path_exists, slots, kHost, limits_of(device)));
}

}  // namespace
}  // namespace dynroute::cuda

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  m.impl("cuda_sepconv_call", TORCH_BOX(&dynroute::cuda::sepconv_op));
  m.impl("cuda_transform_call", TORCH_BOX(&dynroute::cuda::transform_op));
  m.impl("cuda_gate_call", TORCH_BOX(&dynroute::cuda::gate_op));
  m.impl("cuda_route_call", TORCH_BOX(&dynroute::cuda::route_op));
  m.impl("cuda_aggregate_call", TORCH_BOX(&dynroute::cuda::aggregate_op));
  m.impl("cuda_aggregate_backward_call", TORCH_BOX(&dynroute::cuda::aggregate_backward_op));
}
