// The stem's first convolution for images of any number of planes: 3x3, stride 2, no padding, from planes of float to
// [h, w, width] in T, ReLU. Three planes have a kernel of their own, stem_conv.
//
// Work: a block of 128 threads per tile of 32 x 2 output pixels (float: 16 x 2), which are the matrix product's BM, 64
// output channels at a time. k = 9 * planes taps in slices of 64: a thread gathers 16-byte groups of taps of one pixel
// from global memory, lanes along pixels, while the slice's weights come by cp.async; then they are multiplied. Nothing
// overlaps and each block of channels gathers anew: simple, and small beside the stages that follow.
#include "gemm.cuh"
#include "stem_planes.h"

namespace dynroute::cuda {

template <class T>
__device__ inline void stem_planes(const StemPlanesParams& p) {
  using Tile = SmallTile<T, kPlanesChannels>;
  constexpr int V = kVector<T>, kWide = planes_wide(sizeof(T)), kRow = row_of_a<Tile>(kPlanesTaps);
  constexpr int kParts = kThreads / Tile::BM;  // threads that share a pixel
  static_assert(kWide * kPlanesHigh == Tile::BM, "a tile of pixels is a tile of the product");
  static_assert(bytes_of_a<Tile>(kPlanesTaps) == planes_a_bytes(sizeof(T)), "what the host has reserved");
  extern __shared__ __align__(16) unsigned char memory[];
  T* const a = reinterpret_cast<T*>(memory);
  T* const weights = reinterpret_cast<T*>(memory + planes_a_bytes(sizeof(T)));

  const int row = int(blockIdx.x) / p.across, sample = row / p.down;
  const int x0 = (int(blockIdx.x) - row * p.across) * kWide, y0 = (row - sample * p.down) * kPlanesHigh;
  const int wide = min(p.w_out - x0, kWide), high = min(p.h_out - y0, kPlanesHigh);
  const int planes = p.planes, taps = 9 * planes;
  const int pixel = threadIdx.x % Tile::BM, part = threadIdx.x / Tile::BM;
  const int64_t plane = int64_t(p.h_in) * p.w_in;
  const bool inside = pixel % kWide < wide && pixel / kWide < high;
  const float* const image = p.io->images + sample * plane * planes +
                             int64_t(2 * (y0 + pixel / kWide)) * p.w_in + 2 * (x0 + pixel % kWide);
  T* const out = static_cast<T*>(p.out) + ((int64_t(sample) * p.h_out + y0) * p.w_out + x0) * p.weight.n;

#pragma unroll 1
  for (int n = 0; n < p.weight.n; n += Tile::BN) {
    typename Tile::Accumulators sums;
    clear(sums);
#pragma unroll 1
    for (int k = 0; k < p.weight.k_pad; k += kPlanesTaps) {
      const int count = min(kPlanesTaps, p.weight.k_pad - k);
      if (n + k > 0) __syncthreads();  // the slice before has been read
      WeightStream<Tile> stream(p.weight, n, n + Tile::BN, k, count, weights);
      for (int i = 0; i < count / Tile::BK; ++i) stream.fetch(i);
      commit_copies();
      for (int group = part * V; group < count; group += kParts * V) {
        float values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const int at = k + group + i, tap = at / p.of_tap, channel = at - tap * planes, y = tap / 3;
          values[i] = inside && at < taps ? image[channel * plane + int64_t(y) * p.w_in + tap - 3 * y] : 0.f;
        }
        store_group(a + pixel * kRow + group, pack<T>(values));
      }
      wait_copies<0>();
      __syncthreads();
      const PixelRows<Tile> rows(a, kRow);
#pragma unroll 1
      for (int i = 0; i < count / Tile::BK; ++i)
        multiply_chunk<Tile>(sums, rows, i * Tile::BK, weights + i * Tile::kChunk);
    }
    for_results<Tile>(sums, p.weight, n, [&](int, int, int of_tile, int channel, float (&values)[V]) {
      const int x = of_tile % kWide, y = of_tile / kWide;
      if (x >= wide || y >= high || channel >= p.weight.n) return;
      store_global(out + (int64_t(y) * p.w_out + x) * p.weight.n + channel, pack_relu<T>(values));
    });
  }
  if (threadIdx.x == 0)
    count(p.io->sample_macs + sample * kSampleParts + kStemPart, int64_t(wide) * high * taps * p.weight.n);
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(stem_planes, StemPlanesParams, kThreads, 4)
