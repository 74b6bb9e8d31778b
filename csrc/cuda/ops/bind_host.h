// A call on CUDA as data for Python: the results, not computed yet; whatever else the launches touch; the launches
// (network/records.h).
#pragma once
#include <cstring>
#include <tuple>

#include "op_calls.h"

namespace dynroute::cuda {

using Call = std::tuple<Tensors, Tensors, Tensor>;

inline Call as_call(OpCall call) {
  const auto bytes = as_records(call.launches);
  Tensor records = new_tensor({int64_t(bytes.size())}, ScalarType::Byte);
  if (!bytes.empty()) std::memcpy(records.mutable_data_ptr(), bytes.data(), bytes.size());
  return {call.outs, call.held, records};
}
inline DeviceLimits limits_of(const std::vector<int64_t>& device) {
  require(device.size() == 4, "cuda_call: device: wanted 4 numbers, got " + std::to_string(device.size()));
  return {int(device[0]), int(device[1]), int(device[2]), int(device[3])};
}

}  // namespace dynroute::cuda
