// The training operators' calls on CUDA as data for Python, as bind_host.cpp's.
#include "bind_host.h"
#include "chain_calls.h"
#include "gate_train_call.h"
#include "node_train_call.h"

namespace dynroute::cuda {
namespace {

template <auto make>
struct Host;
template <class... Args, OpCall (*make)(const Device&, const DeviceLimits&, Args...)>
struct Host<make> {
  static Call call(Args... args, std::vector<int64_t> device) {
    return as_call(make(Device(DeviceType::CPU), limits_of(device), args...));
  }
};

}  // namespace
}  // namespace dynroute::cuda

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  using namespace dynroute::cuda;
  m.impl("cuda_sepconv_train_call", TORCH_BOX(&Host<&sepconv_train_call>::call));
  m.impl("cuda_sepconv_train_backward_call", TORCH_BOX(&Host<&sepconv_train_backward_call>::call));
  m.impl("cuda_transform_train_call", TORCH_BOX(&Host<&transform_train_call>::call));
  m.impl("cuda_transform_train_backward_call", TORCH_BOX(&Host<&transform_train_backward_call>::call));
  m.impl("cuda_node_train_call", TORCH_BOX(&Host<&node_train_call>::call));
  m.impl("cuda_node_train_backward_call", TORCH_BOX(&Host<&node_train_backward_call>::call));
  m.impl("cuda_gate_train_call", TORCH_BOX(&Host<&gate_train_call>::call));
  m.impl("cuda_gate_train_backward_call", TORCH_BOX(&Host<&gate_train_backward_call>::call));
}
