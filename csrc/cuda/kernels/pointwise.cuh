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
// The block has met since the memory was last used. `ahead`: of the ring, which lies before A.
template <class Tile, class Fill, class Destination>
__device__ inline void pointwise_item(const Matrix& w, int slice, int begin, int end, void* memory, int ahead,
                                      Fill&& fill, Destination&& destination) {
  using T = typename Tile::T;
  T* const ring = static_cast<T*>(memory);
  T* const a = reinterpret_cast<T*>(static_cast<unsigned char*>(memory) + (ahead + 1) * chunk_bytes(Tile::BN));
  const int lda = row_of_a<Tile>(min(w.k_pad, slice));
  const auto store = [&](const typename Tile::Accumulators& sums, int n) {
    for_results<Tile>(sums, w, n, [&](int, int, int pixel, int channel, float (&values)[kVector<T>]) {
      T* to = destination(pixel);
      if (to && channel < w.n) store_global(to + channel, pack_relu<T>(values));
    });
  };
  const PixelRows<Tile> rows(a, lda);
  if (w.k_pad <= slice) {
    fill(a, lda, 0, w.k_pad);
    WeightStream<Tile> stream(w, begin, end, 0, w.k_pad, ring);
    begin_ring(stream, ahead);
    int buffer = 0;
#pragma unroll 1
    for (int n = begin; n < end; n += Tile::BN) {
      typename Tile::Accumulators sums;
      clear(sums);
      multiply<Tile>(sums, rows, stream, ring, ahead, buffer);
      store(sums, n);
    }
    return;
  }
  // several slices come with one block only, so A is filled once
  typename Tile::Accumulators sums;
  clear(sums);
#pragma unroll 1
  for (int k = 0; k < w.k_pad; k += slice) {
    const int count = min(w.k_pad - k, slice);
    if (k > 0) __syncthreads();  // the slice before may still be read
    fill(a, lda, k, count);
    WeightStream<Tile> stream(w, begin, end, k, count, ring);
    begin_ring(stream, ahead);
    int buffer = 0;
    multiply<Tile>(sums, rows, stream, ring, ahead, buffer);
  }
  store(sums, begin);
}

}  // namespace dynroute::cuda
