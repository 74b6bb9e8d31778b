// Checks before any launch: one line that names the operator, the argument, what was wanted and what was got.
#pragma once
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace dynroute {

using torch::headeronly::DeviceType;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

inline void require(bool good, const std::string& message) {
  if (!good) throw std::runtime_error(message);
}

inline const char* name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "another type";
  }
}

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "" : ", ") + (size < 0 ? std::string("*") : std::to_string(size));
  return "[" + text + "]";
}

// wanted: the CPU, or a CUDA device by its index
inline void check_device(const std::string& what, const Tensor& tensor, const Device& wanted) {
  if (wanted.type() == DeviceType::CPU) return require(tensor.is_cpu(), what + ": wanted a CPU tensor");
  require(tensor.is_cuda() && tensor.get_device() == wanted.index(),
          what + ": wanted a tensor on cuda:" + std::to_string(wanted.index()));
}

// wanted: -1 is any size
inline void check(const std::string& what, const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> wanted,
                  const Device& device = Device(DeviceType::CPU)) {
  check_device(what, tensor, device);
  require(tensor.scalar_type() == type, what + ": wanted " + name(type) + ", got " + name(tensor.scalar_type()));
  const auto sizes = tensor.sizes();
  bool good = sizes.size() == wanted.size();
  for (size_t i = 0; good && i < sizes.size(); ++i) good = wanted.begin()[i] < 0 || wanted.begin()[i] == sizes[i];
  require(good, what + ": wanted shape " + shape_text(wanted) + ", got " + shape_text(sizes));
}

// The type the operator computes in, taken from its first tensor.
inline ScalarType check_floating(const std::string& what, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::Double,
          what + ": wanted float32 or float64, got " + name(type));
  return type;
}

inline void check_channels(const std::string& what, int64_t channels, int64_t multiple) {
  require(channels > 0 && channels % multiple == 0, what + ": wanted channels in a multiple of " +
                                                        std::to_string(multiple) + ", got " + std::to_string(channels));
}

// `call` with a value of the C++ type for float32 or float64.
template <class Call>
Tensor with_type(ScalarType type, const Call& call) {
  return type == ScalarType::Double ? call(double{}) : call(float{});
}

inline Tensor nhwc(const Tensor& tensor) { return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast); }

inline Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType type, bool channels_last = false,
                         const Device& device = Device(DeviceType::CPU)) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::empty(shape, type, std::nullopt, device, std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace dynroute
