// One work item of a pointwise product (see pointwise.h): ReLU(A * weights + shift), rounded to T, for a tile of pixels
// and output channels begin to end.
#pragma once
#include <type_traits>

#include "gemm.cuh"
#include "pointwise.h"

namespace dynroute::cuda {

// Calls f with a tile's width as a constant: f(std::integral_constant<int, 64 or 32>).
template <class T, class F>
__device__ inline void with_width(const Matrix& w, F&& f) {
  if constexpr (!kIsFloat<T>)
    if (pointwise_tile(w, false).width == 64) return f(std::integral_constant<int, 64>());
  f(std::integral_constant<int, 32>());
}

template <class T, int Width>
inline constexpr PointwiseTile tile_of = pointwise_tile({nullptr, nullptr, 0, 0, 0, Width}, kIsFloat<T>);

// fill(a, lda, k, count) starts to write values k to k + count of the tile's pixels into a[BM][lda], zeros beyond the
// channels there are, and may leave behind copies that are committed and not waited for: all threads call it.
// destination(pixel) is where output channel 0 of a pixel goes, or null.
template <class T, int Width, class Fill, class Destination>
__device__ inline void pointwise_item(const Matrix& w, int slice, int begin, int end, void* memory, Fill&& fill,
                                      Destination&& destination) {
  using S = GemmTile<T, Width>;
  static_assert(S::BM == tile_of<T, Width>.pixels && S::BN == tile_of<T, Width>.width,
                "the host has the same tile in mind");
  static_assert(sizeof(GemmShared<T, Width>) <= product_bytes(kIsFloat<T>), "A lies behind");
  auto& shared = *static_cast<GemmShared<T, Width>*>(memory);
  T* const a = reinterpret_cast<T*>(static_cast<unsigned char*>(memory) + product_bytes(kIsFloat<T>));
  const int lda = row_of_a<T>(min(w.k_pad, slice));
  // several slices come with one block only, so A is filled once
  for (int n = begin; n < end; n += Width) {
    typename S::Accumulators sums;
    clear<T>(sums);
    for (int k = 0; k < w.k_pad; k += slice) {
      const int count = min(w.k_pad - k, slice);
      if (n == begin) {
        if (k > 0) __syncthreads();  // of the slice before, A's last chunk may still be read
        fill(a, lda, k, count);
      }
      multiply(sums, a, lda, w, n, k, count, shared);
    }
    finish(sums, shared);
    for_results(shared, w, n, [&](int pixel, int channel, float (&values)[8]) {
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
