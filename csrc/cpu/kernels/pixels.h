// The pixels of a pointwise product, brought into the form that it reads: rows of floats that lie together in L1 or L2,
// or, with AMX, tiles (tiles.h). Whoever makes pixels writes floats, a few rows at a time, and says when they are
// whole.
#pragma once
#include "target.h"
#if defined(DYNROUTE_TARGET_AMX)
#include "tiles.h"
#endif

namespace dynroute::DYNROUTE_TARGET {

#if !defined(DYNROUTE_TARGET_AMX)
struct TileScope {
  explicit TileScope(bool) {}
};
template <class S, bool Relu, class F>
void put_pixels(const F* from, int64_t lda, int row, int count, int k, bf16* tiles);
#endif

// S: what the weights are stored as
template <class S>
class Pixels {
  using T = Compute<S>;
  static constexpr int kStaged = 16;  // rows written at once before they go to tiles

 public:
  static int64_t size(int k, int n, int rows) {
    if (!uses_tiles(k, n)) return rows * panel_stride<T>(k);
    return kStaged * panel_stride<T>(k) + 2 * tiles_floats(k, rows) + kPanel;
  }
  Pixels(T* memory /* [size(k, n, rows)] */, int k, int n, int rows)
      : memory_(memory), stride_(panel_stride<T>(k)), k_(k), tiled_(uses_tiles(k, n)) {
    if (!tiled()) return;
    const int64_t at = int64_t(reinterpret_cast<uintptr_t>(memory + kStaged * stride_));
    tiles_ = reinterpret_cast<bf16*>(round_up(at, 64));
    next_tiles_ = tiles_ + 2 * tiles_floats(k, rows);
  }

  bool tiled() const { return kHasTiles && tiled_; }
  const T* rows() const { return memory_; }
  int64_t stride() const { return stride_; }
  const bf16* tiles() const { return tiles_; }
  // Tiles for the next product, which are made while the one before runs.
  bf16* next_tiles() const { return next_tiles_; }
  void next() {
    bf16* now = tiles_;
    tiles_ = next_tiles_, next_tiles_ = now;
  }

  // Rows are made by make(first, count, T* to): all at once, or as many at a time as find room before they go to tiles.
  template <class Make>
  DYNROUTE_INLINE void make(int row, int count, const Make& make) {
    if constexpr (kHasTiles)
      if (tiled_) {
        for (int i = 0; i < count; i += kStaged) {
          const int some = min(kStaged, count - i);
          make(i, some, memory_);
          put_pixels<S, false>(memory_, stride_, row + i, some, k_, tiles_);
        }
        return;
      }
    make(0, count, memory_ + row * stride_);
  }

  // Rows of a map.
  template <class F>
  DYNROUTE_INLINE void take(const F* from /* [count, k], rows lda apart */, int64_t lda, int row, int count,
                            bool relu_input) {
    if constexpr (kHasTiles)
      if (tiled_) {
        if (relu_input) put_pixels<S, true>(from, lda, row, count, k_, tiles_);
        else put_pixels<S, false>(from, lda, row, count, k_, tiles_);
        return;
      }
    T* to = memory_ + row * stride_;
    for (int i = 0; i < count; ++i, from += lda, to += stride_)
      for_channels<T>(k_, [&](int c, auto load, auto store)
                              DYNROUTE_ALWAYS { store(to + c, relu_input ? relu(load(from + c)) : load(from + c)); });
  }

 private:
  T* memory_;
  static int64_t tiles_floats(int k, int rows) { return tiles_size<S>(rows, k) / 2; }

  bf16 *tiles_ = nullptr, *next_tiles_ = nullptr;
  int64_t stride_;
  int k_;
  bool tiled_;
};

}  // namespace dynroute::DYNROUTE_TARGET
