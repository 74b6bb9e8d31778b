// The stem's first convolution: 3x3, stride 2, no padding, from planes of float to [h, w, width] in T, ReLU.
//
// Tile: 32 x 2 output pixels (float: 16 x 2) of one image, which are the matrix product's BM, and all output channels;
// k = 27 taps, padded to 32. Blocks of 128 threads walk over the tiles of all images; all weights (4 KB at width 64)
// stay in their shared memory.
//   image: 3 x 5 rows x 65 columns come by 4-byte cp.async, a lane a column, while the tile before is multiplied. They
//     are laid down with even columns first and odd ones behind: a stride of 2 pixels is then one of 1 word.
//   A: a thread gathers 16 (float: 8) taps of one pixel, lanes along pixels, and writes them rounded, 16 bytes at a
//   time. product, ReLU and 16-byte stores as everywhere (gemm.cuh), without the ring: there is nothing to wait for.
// Global memory: the image 1.27 times (5 rows for 4; float 1.29), the output once; it is the output that takes the
// time.
#include "gemm.cuh"
#include "stem_conv.h"

namespace dynroute::cuda {
namespace {

constexpr int kTaps = kStemInputs, kPadded = padded(kTaps);

template <class T>
struct Stem {
  static constexpr int kWide = stem_wide(sizeof(T)), kColumns = stem_columns(sizeof(T));
  static constexpr int kRow = stem_image_row(sizeof(T));
  using Tile = SmallTile<T>;
  static constexpr int kParts = kThreads / Tile::BM;  // threads that share a pixel: each has some of its taps
  static constexpr int kChunks = kPadded / Tile::BK;
  using Image = float[kStemPlanes][kStemRows][kRow];

  struct alignas(16) Shared {
    T a[Tile::BM][row_of_a<Tile>(kPadded)];
    Image image[2];
  };
  static_assert(kWide * kStemHigh == Tile::BM, "a tile of pixels is a tile of the product");
};

// Where column x of the image lies in its row.
template <class T>
__host__ __device__ constexpr int column(int x) {
  return x / 2 + (x % 2 ? Stem<T>::kWide + 1 : 0);
}

struct StemTile {
  int sample, x, y;  // of its first pixel
};
template <class T>
__device__ inline StemTile stem_tile(const StemConvParams& p, int number) {
  const int row = number / p.across, sample = row / p.down;
  return {sample, (number - row * p.across) * Stem<T>::kWide, (row - sample * p.down) * kStemHigh};
}

__device__ inline void copy_word_async(unsigned to /* shared */, const float* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
}

// The image under a tile, zeros outside of it, on its way to shared memory: a warp takes every fourth row, a lane a
// column of each 32; the one column that is left over is one more copy of a few threads.
template <class T>
__device__ inline void fetch_image(typename Stem<T>::Image& to, const StemConvParams& p, const float* images,
                                   const StemTile& tile) {
  using S = Stem<T>;
  constexpr int rows = kStemPlanes * kStemRows, whole = S::kColumns / 32, warps = kThreads / 32;
  static_assert(S::kColumns == 32 * whole + 1 && rows <= kThreads);
  const int thread = thread_here(), lane = thread % 32, warp = thread / 32;
  const float* from = images + (int64_t(tile.sample) * kStemPlanes * p.h_in + 2 * tile.y) * p.w_in + 2 * tile.x;
  const int wide = p.w_in - 2 * tile.x, high = p.h_in - 2 * tile.y;
  const unsigned start = shared_address(&to);
  // nothing is read where the image ends, whatever the address
  const auto copy = [&](int at, int x, int more) {
    const int plane = at / kStemRows, row = at % kStemRows;
    copy_word_async(start + (at * S::kRow + column<T>(x) + more / 2) * 4,
                    from + int64_t(plane * p.h_in + row) * p.w_in + x + more, x + more < wide && row < high);
  };
#pragma unroll
  for (int i = 0; i < ceil_div(rows, warps); ++i)
    if (warp + i * warps < rows)
#pragma unroll
      for (int j = 0; j < whole; ++j) copy(warp + i * warps, lane, 32 * j);
  if (thread < rows) copy(thread, 0, 32 * whole);
  commit_copies();
}

// Taps Part * kPadded / kParts and on of this thread's pixel.
template <class T, int Part>
__device__ inline void gather(T* a, const float* image /* under the pixel's first tap */) {
  constexpr int count = kPadded / Stem<T>::kParts;
#pragma unroll
  for (int group = 0; group < count; group += kVector<T>) {
    float values[kVector<T>];
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const int tap = Part * count + group + i, plane = tap % kStemPlanes, x = tap / kStemPlanes % 3,
                row = tap / kStemPlanes / 3;
      values[i] = tap < kTaps ? image[(plane * kStemRows + row) * Stem<T>::kRow + column<T>(x)] : 0.f;
    }
    store_group(a + Part * count + group, pack<T>(values));
  }
}

template <class T>
__device__ inline void stem_conv(const StemConvParams& p) {
  using S = Stem<T>;
  using Tile = typename S::Tile;
  extern __shared__ __align__(16) unsigned char memory[];
  typename S::Shared& shared = *reinterpret_cast<typename S::Shared*>(memory);
  static_assert(sizeof(shared) == stem_a_bytes(sizeof(T)) + stem_image_bytes(sizeof(T)), "what the host has reserved");
  T* weights = reinterpret_cast<T*>(memory + sizeof(shared));
  const int blocks = ceil_div(p.weight.n_pad, Tile::BN);
  const int tiles = p.n * p.down * p.across;
  const float* images = p.io->images;

  for (int block = 0; block < blocks; ++block) {
    WeightStream<Tile> stream(p.weight, block * Tile::BN, (block + 1) * Tile::BN, 0, kPadded, weights);
    for (int i = 0; i < S::kChunks; ++i) stream.fetch(block * S::kChunks + i);
  }
  StemTile next = stem_tile<T>(p, blockIdx.x);
  if (int(blockIdx.x) < tiles) fetch_image<T>(shared.image[0], p, images, next);
  for (int at = blockIdx.x, turn = 0; at < tiles; at += gridDim.x, turn ^= 1) {
    const StemTile tile = next;
    wait_copies<0>();
    __syncthreads();
    if (at + int(gridDim.x) < tiles) {
      next = stem_tile<T>(p, at + gridDim.x);
      fetch_image<T>(shared.image[turn ^ 1], p, images, next);
    }
    const int thread = thread_here(), pixel = thread % Tile::BM, part = thread / Tile::BM;
    const int in_image = pixel / S::kWide * 2 * S::kRow + pixel % S::kWide;
    const float* image = &shared.image[turn][0][0][0] + in_image;
    T* a = shared.a[pixel];
    static_assert(S::kParts == 2 || S::kParts == 4, "the cases below");
    if (part == 0) gather<T, 0>(a, image);
    if (part == 1) gather<T, 1>(a, image);
    if constexpr (S::kParts > 2) {
      if (part == 2) gather<T, 2>(a, image);
      if (part == 3) gather<T, 3>(a, image);
    }
    __syncthreads();
    const int wide = p.w_out - tile.x, high = p.h_out - tile.y;
    T* out = static_cast<T*>(p.out) + ((int64_t(tile.sample) * p.h_out + tile.y) * p.w_out + tile.x) * p.weight.n;
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      const int thread = thread_here();
      typename Tile::Accumulators sums;
      clear(sums);
      const PixelRows<Tile> rows(&shared.a[0][0], row_of_a<Tile>(kPadded), thread);
#pragma unroll
      for (int i = 0; i < S::kChunks; ++i)
        multiply_chunk<Tile>(sums, rows, i * Tile::BK, weights + (block * S::kChunks + i) * Tile::kChunk, thread);
      for_results<Tile>(
          sums, p.weight, block * Tile::BN,
          [&](int, int, int pixel, int channel, float (&values)[kVector<T>]) {
            const int x = pixel % S::kWide, y = pixel / S::kWide;
            if (x >= wide || y >= high || channel >= p.weight.n) return;
            T* to = out + (y * p.w_out + x) * p.weight.n + channel;
            store_global(to, pack_relu<T>(values));
          },
          thread);
    }
    if (threadIdx.x == 0)
      count(p.io->sample_macs + tile.sample * kSampleParts + kStemPart,
            int64_t(min(wide, S::kWide)) * min(high, kStemHigh) * kTaps * p.weight.n);
  }
}

}  // namespace
}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(stem_conv, StemConvParams, kThreads, kStemResident)
