// The operators' calls on CUDA as data for Python, made of tensors on the CPU: what the emulator runs. Part of the CPU
// library, as it needs no GPU.
#include <cstring>
#include <tuple>

#include "loss_call.h"
#include "op_calls.h"

namespace dynroute::cuda {
namespace {

// The results, not computed yet; whatever else the launches touch; the launches (network/records.h).
using Call = std::tuple<Tensors, Tensors, Tensor>;

Call as_call(OpCall call) {
  const auto bytes = as_records(call.launches);
  Tensor records = new_tensor({int64_t(bytes.size())}, ScalarType::Byte);
  if (!bytes.empty()) std::memcpy(records.mutable_data_ptr(), bytes.data(), bytes.size());
  return {call.outs, call.held, records};
}
DeviceLimits limits_of(const std::vector<int64_t>& device) {
  require(device.size() == 4, "cuda_call: device: wanted 4 numbers, got " + std::to_string(device.size()));
  return {int(device[0]), int(device[1]), int(device[2]), int(device[3])};
}
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

Call upsampled_cross_entropy_op(const Tensor& logits, const Tensor& labels, int64_t factor, Maybe weight,
                                int64_t ignore_index, bool with_gradient, std::vector<int64_t> device) {
  return as_call(upsampled_cross_entropy_call(logits, labels, factor, weight, ignore_index, with_gradient, kHost,
                                              limits_of(device)));
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
  m.impl("cuda_upsampled_cross_entropy_call", TORCH_BOX(&dynroute::cuda::upsampled_cross_entropy_op));
}
