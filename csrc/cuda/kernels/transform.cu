// transform: a path between scales as an operator: ReLU, 1x1 at every stride-th pixel, shift, ReLU, for open samples.
//
// Work: items of pixels x output channels as a row's paths have them (pointwise.h), one after the other to each block.
// Memory: as there; the input is not ReLU'd yet, so each thread does that in shared memory with the groups that it
// copied itself, before the product begins.
#include "pointwise.cuh"
#include "transform.h"

namespace dynroute::cuda {

template <class Tile>
__device__ inline void transform_item(const TransformParams& p, int sample, int item, void* memory) {
  using T = typename Tile::T;
  constexpr PointwiseTile tile = tile_of<Tile>;
  static_assert(Tile::BM == tile.pixels, "the host has the same tile in mind");
  const Matrix& w = p.weight;
  const int all = p.h_out * p.w_out, of_all = item / p.part.parts;
  const int first = of_all * tile.pixels, pixels = min(tile.pixels, all - first);
  const int begin = (item - of_all * p.part.parts) * p.part.channels, end = min(begin + p.part.channels, w.n);
  const T* const x = static_cast<const T*>(p.x) + int64_t(sample) * p.h * p.w * p.c;
  T* const out = static_cast<T*>(p.out) + (int64_t(sample) * all + first) * w.n;

  const auto fill = [&](T* a, int lda, int k, int count) {
    constexpr int kStep = kThreads / 8, kRows = Tile::BM / kStep;  // from one row of a thread to the next
    const int row = threadIdx.x / 8, last = min(count, p.c - k);
    T* const to = a + row * lda;
    int from[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int pixel = first + row + i * kStep, line = pixel / p.across;
      from[i] = (line * p.w + pixel - line * p.across) * p.stride * p.c + k;
    }
#pragma unroll 1
    for (int at = threadIdx.x % 8 * kVector<T>; at < count; at += 8 * kVector<T>)
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const bool valid = row + i * kStep < pixels && at < last;
        copy_async(to + i * kStep * lda + at, x + (valid ? from[i] + at : 0), valid);
      }
    commit_copies();
    wait_copies<0>();
#pragma unroll 1
    for (int at = threadIdx.x % 8 * kVector<T>; at < count; at += 8 * kVector<T>)
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        T* const group = to + i * kStep * lda + at;
        store_group(group, relu<T>(load_group(group)));
      }
  };
  const auto destination = [&](int row) { return row < pixels ? out + int64_t(row) * w.n : nullptr; };
  pointwise_item<Tile>(w, tile.slice, begin, end, memory, kLeastAhead, fill, destination);
  __syncthreads();  // the next item writes what this one may still read
}

template <class T>
__device__ inline void transform(const TransformParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int samples = p.open.count ? *p.open.count : p.n;
  for (int at = blockIdx.x; at < samples * p.items; at += gridDim.x) {
    const int listed = at / p.items, item = at - listed * p.items;
    const int sample = p.open.count ? p.open.samples[listed] : listed;
    with_tile<T>(p.weight, [&](auto tile) { transform_item<decltype(tile)>(p, sample, item, memory); });
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(transform, TransformParams, kThreads, kTransformResident)
