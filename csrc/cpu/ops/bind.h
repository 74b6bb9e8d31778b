// What the CPU bindings share: torch's threads, packed weights, the mask of open samples, the counters of a call.
#pragma once
#include <cstring>
#include <vector>

#include "bindings/checks.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/tasks_of_jobs.h"
#include "cpu/network/tasks.h"

namespace dynroute {

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

// An operator packs its weights for the call. In tiles that takes longer, and pays on maps of so many pixels; smaller
// ones are done by the kernels without tiles.
constexpr int64_t kTilePixels = 1024;
template <class T>
const Kernels<T>& kernels_for(int64_t pixels) {
  return pixels >= kTilePixels ? kernels<T>() : kernels_without_tiles<T>();
}

// Packed weights of one call for a map of `pixels`, in this thread's memory: one at a time. Packing is work for the
// threads too.
template <class T>
class Packed {
 public:
  Packed(int64_t size, int64_t pixels)
      : tiles_(pixels >= kTilePixels), next_(static_cast<T*>(call_scratch(size_t(size) * sizeof(T)))) {}
  static int64_t pointwise_size(int64_t n, int64_t k) {
    const int64_t tiles = tiled(n, k) ? tiles_size<float>(n, k) / 2 + kPanel : 0;
    return panels_size(n, k) + tiles + round_up(n, kPanel);
  }
  static int64_t depthwise_size(int64_t channels) { return round_up(9 * channels, kPanel); }

  Pointwise<T> pointwise(const T* weight /* [n][k] */, const T* scale, const T* shift, int n, int k) {
    T* panels = take(panels_size(n, k));
    T* shifts = take(round_up(n, kPanel));
    pack_shift(shift, n, shifts);
    if constexpr (std::is_same_v<T, float>)
      if (tiles_ && tiled(n, k)) {
        T* tiles = take(tiles_size<float>(n, k) / 2);
        tasks_.add(
            [=](int panel) {
              float* at = panels + int64_t(panel) * k * kPanel;
              pack_panel(weight, scale, n, k, panel, at);
              tile_panel(at, k, reinterpret_cast<bf16*>(tiles) + panel * tiles_size<float>(kPanel, k));
            },
            int(ceil_div(n, kPanel)));
        return {tiles, shifts, k, n};
      }
    tasks_.add([=](int panel) { pack_panel(weight, scale, n, k, panel, panels + int64_t(panel) * k * kPanel); },
               int(ceil_div(n, kPanel)));
    return {panels, shifts, k, n};
  }
  const T* depthwise(const T* weight /* [channels][9] */, int channels) {
    T* packed = take(depthwise_size(channels));
    tasks_.add([=](int) { pack_depthwise(weight, channels, packed); }, 1);
    return packed;
  }
  void run(const Parallel& parallel) { Runner(parallel, false).run(tasks_); }

 private:
  static bool tiled(int64_t n, int64_t k) { return std::is_same_v<T, float> && weights_in_tiles(int(k), int(n)); }
  T* take(int64_t size) { return std::exchange(next_, next_ + size); }
  const bool tiles_;
  T* next_;
  TaskList tasks_;
};

// What the last call on this thread counted: [executed macs, halo macs].
inline thread_local int64_t last_macs[2] = {0, 0};

struct CallCounters {
  CallCounters() { last_macs[0] = last_macs[1] = 0; }
  int64_t* macs = &last_macs[0];
  int64_t* halo = &last_macs[1];
};

}  // namespace dynroute
