// One work item of a pointwise product (see pointwise.h): ReLU(A * weights + shift), rounded to T, for a tile of pixels
// and output channels begin to end.
#pragma once
#include <type_traits>

#include "gemm.cuh"
#include "pointwise.h"

namespace dynroute::cuda {

// Calls f with an object of the type of the product's tile, SmallTile<T, 64 or 32>.
template <class T, class F>
__device__ inline void with_tile(const Matrix& w, F&& f) {
  if constexpr (!kIsFloat<T>)
    if (pointwise_tile(w, false).width == 64) return f(SmallTile<T, 64>());
  f(SmallTile<T, 32>());
}

template <class Tile>
inline constexpr PointwiseTile tile_of = pointwise_tile({nullptr, nullptr, 0, 0, 0, Tile::BN}, Tile::kCores);

// fill(a, lda, k, count) starts to write values k to k + count of the tile's pixels into a[BM][lda], zeros beyond the
// channels there are, and may leave behind copies that are committed and not waited for: all threads call it.
// destination(pixel) is where output channel 0 of a pixel goes, or null.
// `front`: bytes of the memory before A.
template <class Tile, class Fill, class Destination>
__device__ inline void pointwise_item(const Matrix& w, int slice, int begin, int end, void* memory, int front,
                                      Fill&& fill, Destination&& destination) {
  using T = typename Tile::T;
  auto& shared = *static_cast<GemmShared<Tile>*>(memory);
  T* const a = reinterpret_cast<T*>(static_cast<unsigned char*>(memory) + front);
  const int lda = row_of_a<Tile>(min(w.k_pad, slice));
  // several slices come with one block only, so A is filled once
  for (int n = begin; n < end; n += Tile::BN) {
    typename Tile::Accumulators sums;
    clear(sums);
    for (int k = 0; k < w.k_pad; k += slice) {
      const int count = min(w.k_pad - k, slice);
      if (n == begin) {
        if (k > 0) __syncthreads();  // of the slice before, A's last chunk may still be read
        fill(a, lda, k, count);
      }
      multiply<Tile>(sums, PixelRows<Tile>(a, lda), w, n, k, count, shared);
    }
    finish<Tile>(sums, shared);
    for_results<Tile>(shared, w, n, [&](int pixel, int channel, float (&values)[8]) {
      T* to = destination(pixel);
      if (!to || channel >= w.n) return;
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = fmaxf(values[i], 0);
#pragma unroll
      for (int i = 0; i < 8; i += kVector<T>) {
        float group[kVector<T>];
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) group[j] = values[i + j];
        store_global(to + channel + i, pack<T>(group));
      }
    });
  }
}

}  // namespace dynroute::cuda
