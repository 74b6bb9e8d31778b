// The operators' calls on CUDA as data for Python, made of tensors on the CPU: what the emulator runs. Part of the CPU
// library, as it needs no GPU.
#include <cstring>
#include <tuple>

#include "calls.h"

namespace dynroute::cuda {
namespace {

// The results, not computed yet; whatever else the launches touch; the launches (network/records.h).
using Call = std::tuple<Tensors, Tensors, Tensor>;

template <auto make>
struct AsData;
template <class... Args, OpCall (*make)(const Device&, const DeviceLimits&, Args...)>
struct AsData<make> {
  static Call call(Args... args, std::vector<int64_t> device) {
    require(device.size() == 4, "cuda_call: device: wanted 4 numbers, got " + std::to_string(device.size()));
    const DeviceLimits limits = {int(device[0]), int(device[1]), int(device[2]), int(device[3])};
    const OpCall made = make(Device(DeviceType::CPU), limits, args...);
    const auto bytes = as_records(made.launches);
    Tensor records = new_tensor({int64_t(bytes.size())}, ScalarType::Byte);
    if (!bytes.empty()) std::memcpy(records.mutable_data_ptr(), bytes.data(), bytes.size());
    return {made.outs, made.held, records};
  }
};

}  // namespace
}  // namespace dynroute::cuda

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  using namespace dynroute::cuda;
#define DYNROUTE_BIND(name, results) m.impl("cuda_" #name "_call", TORCH_BOX(&AsData<&name##_call>::call));
  DYNROUTE_CALLS(DYNROUTE_BIND)
}
