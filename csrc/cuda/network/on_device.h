// What every binding on CUDA begins with: a tensor's device made the current one, and that device's current stream.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace dynroute::cuda {

// For as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream_));
  }
  int index() const { return int(index_); }
  void* stream() const { return stream_; }

 private:
  const torch::stable::accelerator::DeviceIndex index_;
  const torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace dynroute::cuda
