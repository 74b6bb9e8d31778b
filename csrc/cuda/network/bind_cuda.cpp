// The CUDA library's operators: torch's device and stream, and lists of launches.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <mutex>
#include <vector>

#include "bindings/checks.h"
#include "launch.h"
#include "on_device.h"

namespace dynroute::cuda {
namespace {

// Tensors that graphs hold. A graph lets go on a thread that must not call CUDA, which freeing a tensor may do: so it
// only says so, and the next call of a network frees them.
class HeldByGraphs {
 public:
  static void hold(const Tensor& tensor, void* stream) {
    auto* held = new Tensor(tensor);
    if (!hold_for_graph(stream, held, release)) {
      delete held;
      throw std::runtime_error("cuda_hold: wanted a stream that is being captured");
    }
  }

  static void free_released() {
    std::vector<Tensor*> last;
    {
      const std::lock_guard<std::mutex> lock(mutex());
      last.swap(released());
    }
    for (Tensor* tensor : last) delete tensor;
  }

 private:
  static void release(void* held) {
    const std::lock_guard<std::mutex> lock(mutex());
    released().push_back(static_cast<Tensor*>(held));
  }
  // never destroyed: graphs may outlive what static destructors end
  static std::mutex& mutex() {
    static auto* const made = new std::mutex;
    return *made;
  }
  static std::vector<Tensor*>& released() {
    static auto* const made = new std::vector<Tensor*>;
    return *made;
  }
};

// Launches records [first, last) on the current stream of the workspace's device, without waiting.
// io: addresses in the order of struct Io; for the first record, and empty where that is not launched.
void run_op(const Tensor& workspace, const Tensor& launches, int64_t dtype, int64_t first, int64_t last,
            std::vector<int64_t> io) {
  constexpr size_t kPointers = sizeof(Io) / sizeof(void*);
  check("cuda_run: launches", launches, ScalarType::Byte, {-1});
  require(launches.is_contiguous(), "cuda_run: launches: wanted a contiguous tensor");
  require(dtype >= 0 && dtype <= 2, "cuda_run: dtype: wanted 0, 1 or 2, got " + std::to_string(dtype));
  require(first > 0 || io.size() == kPointers,
          "cuda_run: io: wanted " + std::to_string(kPointers) + " addresses, got " + std::to_string(io.size()));
  HeldByGraphs::free_released();
  Io pointers = {};
  if (first == 0) std::memcpy(&pointers, io.data(), sizeof(pointers));

  const OnDevice device(workspace);
  run_records(static_cast<const unsigned char*>(launches.const_data_ptr()), size_t(launches.numel()), device.index(),
              DType(dtype), first, last, pointers, device.stream());
}

// Keeps a tensor's memory for as long as the graph lives that the current stream is being captured into.
void hold_op(const Tensor& tensor) {
  const OnDevice device(tensor);
  HeldByGraphs::hold(tensor, device.stream());
}

std::vector<int64_t> limits_op(int64_t device) {
  const DeviceLimits limits = device_limits(int(device));
  return {limits.capability, limits.multiprocessors, limits.shared_per_block, limits.shared_per_multiprocessor};
}

}  // namespace
}  // namespace dynroute::cuda

STABLE_TORCH_LIBRARY_IMPL(dynroute, CUDA, m) {
  m.impl("cuda_run", TORCH_BOX(&dynroute::cuda::run_op));
  m.impl("cuda_hold", TORCH_BOX(&dynroute::cuda::hold_op));
}
STABLE_TORCH_LIBRARY_IMPL(dynroute, CompositeExplicitAutograd, m) {
  m.impl("cuda_limits", TORCH_BOX(&dynroute::cuda::limits_op));
}
