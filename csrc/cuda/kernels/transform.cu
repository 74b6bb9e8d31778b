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
  const int all = p.h_out * p.w_out;
  const Cut part = cut(w, tile, ceil_div(all, tile.pixels));
  const int first = item / part.parts * tile.pixels, pixels = min(tile.pixels, all - first);
  const int begin = item % part.parts * part.channels, end = min(begin + part.channels, w.n);
  const T* const x = static_cast<const T*>(p.x) + int64_t(sample) * p.h * p.w * p.c;
  T* const out = static_cast<T*>(p.out) + (int64_t(sample) * all + first) * w.n;

  const auto fill = [&](T* a, int lda, int k, int count) {
    const auto groups = [&](auto&& each) {
      for (int row = threadIdx.x / 8; row < Tile::BM; row += kThreads / 8)
        for (int i = threadIdx.x % 8 * kVector<T>; i < count; i += 8 * kVector<T>) each(row, i, a + row * lda + i);
    };
    groups([&](int row, int i, T* to) {
      const int pixel = first + row, from = (pixel / p.w_out * p.w + pixel % p.w_out) * p.stride * p.c + k + i;
      const bool valid = row < pixels && k + i < p.c;
      copy_async(to, x + (valid ? from : 0), valid);
    });
    commit_copies();
    wait_copies<0>();
    groups([&](int, int, T* to) {
      float values[kVector<T>];
      unpack<T>(load_group(to), values);
      store_group(to, pack_relu<T>(values));
    });
  };
  const auto destination = [&](int row) { return row < pixels ? out + int64_t(row) * w.n : nullptr; };
  pointwise_item<Tile>(w, tile.slice, begin, end, memory, kLeastAhead, fill, destination);
  __syncthreads();  // the next item writes what this one may still read
}

template <class T>
__device__ inline void transform(const TransformParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int of_sample = transform_items(p, kIsFloat<T>), samples = p.open.count ? *p.open.count : p.n;
  for (int64_t at = blockIdx.x; at < int64_t(samples) * of_sample; at += gridDim.x) {
    const int listed = int(at / of_sample), item = int(at % of_sample);
    const int sample = p.open.count ? p.open.samples[listed] : listed;
    with_tile<T>(p.weight, [&](auto tile) { transform_item<decltype(tile)>(p, sample, item, memory); });
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(transform, TransformParams, kThreads, kTransformResident)
