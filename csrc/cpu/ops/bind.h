// What the CPU bindings share: torch's threads, the mask of open samples, the counters of a call.
#pragma once
#include "bindings/op_checks.h"
#include "cpu/network/tasks.h"

namespace dynroute {

inline const OpRules kOnCpu = {Device(DeviceType::CPU), false, 4};

// Threads are torch's: their number is torch.get_num_threads(), and inside a parallel region everything runs in line.
struct TorchParallel final : Parallel {
  int threads() const override { return int(torch::stable::get_num_threads()); }
  void each(int threads, const std::function<void()>& body) const override {
    if (threads == 1) return body();
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) body();
    });
  }
};

// A contiguous copy (or the tensor itself), kept alive beside its pointer.
template <class T>
struct Values {
  Tensor tensor;
  explicit Values(const Tensor& from) : tensor(torch::stable::contiguous(from)) {}
  const T* data() const { return tensor.template const_data_ptr<T>(); }
};

// A [N] bool mask; absent means all.
class Mask {
 public:
  Mask(const std::string& what, const std::optional<Tensor>& mask, int64_t n) {
    if (!mask) return;
    check(what, *mask, ScalarType::Bool, {n});
    tensor_ = torch::stable::contiguous(*mask);
    values_ = static_cast<const bool*>(tensor_->const_data_ptr());
  }
  bool operator[](int64_t i) const { return !values_ || values_[i]; }

 private:
  std::optional<Tensor> tensor_;
  const bool* values_ = nullptr;
};

// What the last call on this thread counted.
struct CountedMacs {
  int64_t executed, halo;
};
inline thread_local CountedMacs last_macs = {0, 0};

// What all calls of the process counted, without halo.
inline std::atomic<int64_t> total_macs{0};

struct CallCounters {
  CallCounters() { last_macs = {0, 0}; }
  ~CallCounters() { total_macs.fetch_add(last_macs.executed, std::memory_order_relaxed); }
  CallCounters(const CallCounters&) = delete;
  CallCounters& operator=(const CallCounters&) = delete;
  int64_t* macs = &last_macs.executed;
  int64_t* halo = &last_macs.halo;
};

}  // namespace dynroute
