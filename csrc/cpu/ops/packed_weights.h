// The weights of one call, packed for it into the kernels' layouts.
#pragma once
#include <type_traits>
#include <utility>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/scratch.h"
#include "cpu/network/tasks.h"

namespace dynroute {

// An operator packs its weights for the call. In tiles that takes longer, and pays on maps of so many pixels; smaller
// ones are done by the kernels without tiles.
constexpr int64_t kMinPixelsForTiles = 1024;
template <class T>
const Kernels<T>& kernels_for(int64_t pixels) {
  return pixels >= kMinPixelsForTiles ? kernels<T>() : kernels_without_tiles<T>();
}

// Packed weights of one call for a map of `pixels`, in this thread's memory: one at a time. Packing is work for the
// threads too.
template <class T>
class PackedWeights {
 public:
  PackedWeights(int64_t size, int64_t pixels)
      : tiles_(pixels >= kMinPixelsForTiles), next_(static_cast<T*>(call_scratch(size_t(size) * sizeof(T)))) {}
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
  // Of the weights' transpose: [k][n] as they lie, without scale or shift; always in panels.
  Pointwise<T> transposed(const T* weight /* [k][n] */, int n, int k) {
    T *panels = take(panels_size(n, k)), *shifts = take(round_up(n, kPanel));
    std::fill_n(shifts, round_up(n, kPanel), T(0));
    tasks_.add([=](int panel) { pack_transposed_panel(weight, n, k, panel, panels + int64_t(panel) * k * kPanel); },
               int(ceil_div(n, kPanel)));
    return {panels, shifts, k, n};
  }
  // The taps from last to first.
  const T* flipped(const T* weight /* [channels][9] */, int channels) {
    T* packed = take(depthwise_size(channels));
    tasks_.add(
        [=](int) {
          for (int tap = 0; tap < 9; ++tap)
            for (int c = 0; c < channels; ++c) packed[int64_t(tap) * channels + c] = weight[int64_t(c) * 9 + 8 - tap];
        },
        1);
    return packed;
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

}  // namespace dynroute
