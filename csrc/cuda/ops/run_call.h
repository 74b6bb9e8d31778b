// A call on CUDA tensors: made, and launched on the current stream of their device.
#pragma once
#include "cuda/network/launch.h"
#include "cuda/network/on_device.h"
#include "op_calls.h"

namespace dynroute::cuda {

// make(device, limits) -> OpCall
template <class Make>
Tensors run_call(const char* op, const Tensor& first, const Make& make) {
  require(first.is_cuda(), std::string(op) + ": wanted tensors on a GPU");
  const OnDevice device(first);
  const OpCall call = make(Device(DeviceType::CUDA, first.get_device_index()), device_limits(device.index()));
  run_launches(call.launches, device.index(), call.dtype, device.stream());
  return call.outs;
}

}  // namespace dynroute::cuda
