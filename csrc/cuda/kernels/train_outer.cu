// train_outer: the gradient of a product's weights, the sum over pixels of gradient^T * input, for up to two products
// of listed samples.
//
// Work: an item is a block of 64 or 128 output and 64 input channels, over a part of the listed tiles (8 x 8 pixels;
// float: 8 x 4); parts leave their own sums, which train_reduce adds up. For each tile both factors are made in shared
// memory as train_product and train_forward make them, the input behind its depthwise where it has one: nothing of them
// was stored. Tensor cores: a warp has 32 x 32 (64 wide: 32 x 16) sums; both factors lie with their channels along
// rows, and are turned by ldmatrix. float: 4 or 8 x 4 sums of a thread on CUDA cores. Memory: gradient and raw output
// once for each 64 input channels, the input once for each 128 output channels.
#include "train_tiles.cuh"

namespace dynroute::cuda {

__device__ inline void load_turned(unsigned (&r)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}

// How a block's Width x 64 sums are dealt to its threads.
template <class T, int Width>
struct OuterTile {
  static constexpr bool kCores = kIsFloat<T>;
  static constexpr int kPixels = kSepconvWide * sepconv_high(sizeof(T));
  static constexpr int kRowA = outer_row(Width, sizeof(T)) / int(sizeof(T)),
                       kRowB = outer_row(kOuterInputs, sizeof(T)) / int(sizeof(T));
  static constexpr int kAcross = Width == 128 ? 2 : 4;        // warps side by side, along input channels
  static constexpr int kBlocks = kOuterInputs / kAcross / 8;  // of 8 input channels, of a warp
  static constexpr int kFours = Width / 64;                   // float: groups of 4 output channels
  using Sums = float[kCores ? 4 * kFours : 2][kCores ? 1 : kBlocks][4];

  static __device__ void add(Sums& sums, const T* a, const T* b, int thread) {
    if constexpr (kCores) {
      const float *rows = a + thread / 16 * 4, *columns = b + thread % 16 * 4;
#pragma unroll 4
      for (int pixel = 0; pixel < kPixels; ++pixel, rows += kRowA, columns += kRowB) {
        const float4 in = *reinterpret_cast<const float4*>(columns);
#pragma unroll
        for (int four = 0; four < kFours; ++four) {
          const float4 of = *reinterpret_cast<const float4*>(rows + 64 * four);
          const float values[4] = {of.x, of.y, of.z, of.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float (&sum)[4] = sums[4 * four + i][0];
            sum[0] = fmaf(values[i], in.x, sum[0]), sum[1] = fmaf(values[i], in.y, sum[1]);
            sum[2] = fmaf(values[i], in.z, sum[2]), sum[3] = fmaf(values[i], in.w, sum[3]);
          }
        }
      }
    } else {
      const int lane = thread % 32, warp = thread / 32, row = warp / kAcross * 32,
                column = warp % kAcross * 8 * kBlocks;
      // matrices in the order that mma wants them in: of the gradient by channels first, of the input by pixels
      unsigned from_a = shared_address(a + (lane / 16 * 8 + lane % 8) * kRowA + row + lane / 8 % 2 * 8);
      unsigned from_b = shared_address(b + (lane / 8 % 2 * 8 + lane % 8) * kRowB + column + lane / 16 * 8);
#pragma unroll
      for (int pixel = 0; pixel < kPixels; pixel += 16) {
        unsigned left[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) load_turned(left[i], from_a + i * 16 * unsigned(sizeof(T)));
#pragma unroll
        for (int j = 0; j < kBlocks; j += 2) {
          unsigned right[4];
          load_turned(right, from_b + j * 8 * unsigned(sizeof(T)));
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            mma(sums[i][j], left[i], right[0], right[1], T());
            mma(sums[i][j + 1], left[i], right[2], right[3], T());
          }
        }
        from_a += 16 * kRowA * unsigned(sizeof(T)), from_b += 16 * kRowB * unsigned(sizeof(T));
      }
    }
  }
  // Into [rows][columns], from (row0, column0) on.
  static __device__ void store(const Sums& sums, float* to, int row0, int column0, int rows, int columns, int thread) {
    if constexpr (kCores) {
      const int column = column0 + thread % 16 * 4;
      if (column >= columns) return;
#pragma unroll
      for (int i = 0; i < 4 * kFours; ++i) {
        const int row = row0 + i / 4 * 64 + thread / 16 * 4 + i % 4;
        const float (&sum)[4] = sums[i][0];
        if (row < rows)
          *reinterpret_cast<float4*>(to + int64_t(row) * columns + column) = {sum[0], sum[1], sum[2], sum[3]};
      }
    } else {
      const int lane = thread % 32, warp = thread / 32;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < kBlocks; ++j)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = row0 + warp / kAcross * 32 + i * 16 + half * 8 + lane / 4;
            const int column = column0 + warp % kAcross * 8 * kBlocks + j * 8 + lane % 4 * 2;
            if (row < rows && column < columns)
              *reinterpret_cast<float2*>(to + int64_t(row) * columns + column) = {sums[i][j][2 * half],
                                                                                  sums[i][j][2 * half + 1]};
          }
    }
  }
};

struct OuterPlace {
  int split, row, column;  // the first of the block's output and input channels
  int begin, end;          // tiles
};

template <class T, int Width>
__device__ inline void outer_item(const TrainOuterJob& job, const OuterPlace& at, unsigned char* memory) {
  using Tile = OuterTile<T, Width>;
  const TrainGradient& gradient = job.gradient;
  T* const a = reinterpret_cast<T*>(memory);
  unsigned char* const behind = memory + outer_factor_bytes(Width, sizeof(T));
  T* const b = reinterpret_cast<T*>(behind);
  unsigned char* const halo = behind + outer_factor_bytes(kOuterInputs, sizeof(T));
  const int in_row = ceil_div(gradient.w, kSepconvWide), tiles = train_tiles(gradient.h, gradient.w, sizeof(T));
  typename Tile::Sums sums;
  clear(sums);
#pragma unroll 1
  for (int tile = at.begin; tile < at.end; ++tile) {
    const int sample = sample_of(job.samples, tile / tiles), inside = tile % tiles;
    const int y = inside / in_row * sepconv_high(sizeof(T)), x = inside % in_row * kSepconvWide;
    __syncthreads();  // the tile before has been read
    fill_rows<T>(a, Tile::kRowA, gradient.c - at.row, Width, y, x, gradient.h, gradient.w,
                 [&](int channel) { return GradientValues<T>(gradient, sample, at.row + channel); });
    if (!job.taps) {
      fill_rows<T>(b, Tile::kRowB, job.source.c - at.column, kOuterInputs, y, x, gradient.h, gradient.w,
                   [&](int channel) {
                     return [values = SourceValues<T>(job.source, sample, at.column + channel), stride = job.stride](
                                int y, int x) { return values(y * stride, x * stride); };
                   });
    } else if (job.stride == 1) {
      filter_halo<T, 1>(halo, job.source, job.taps, sample, y, x, at.column, kOuterInputs, b, Tile::kRowB);
    } else {
      filter_halo<T, 2>(halo, job.source, job.taps, sample, y, x, at.column, kOuterInputs, b, Tile::kRowB);
    }
    __syncthreads();
    Tile::add(sums, a, b, thread_here());
  }
  float* const to = job.partials + int64_t(at.split) * gradient.c * job.source.c;
  Tile::store(sums, to, at.row, at.column, gradient.c, job.source.c, thread_here());
}

template <class T>
__device__ inline void train_outer(const TrainOuterParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ TrainOuterJob job;
  __shared__ OuterPlace place;
  for (int64_t number = blockIdx.x;; number += gridDim.x) {
    __syncthreads();
    if (threadIdx.x == 0) {
      int64_t at = number;
      place.split = -1;
#pragma unroll
      for (const TrainOuterJob& one : p.job) {
        if (!one.partials || place.split >= 0) continue;
        const int blocks = outer_blocks(one.gradient.c, one.source.c), width = outer_width(one.gradient.c);
        const int64_t here = int64_t(blocks) * one.splits;
        if (at >= here) {
          at -= here;
          continue;
        }
        const int block = int(at % blocks), in_row = ceil_div(one.source.c, kOuterInputs);
        const int64_t tiles =
            int64_t(samples_of(one.samples, p.n)) * train_tiles(one.gradient.h, one.gradient.w, sizeof(T));
        place.split = int(at / blocks), place.row = block / in_row * width,
        place.column = block % in_row * kOuterInputs;
        place.begin = int(tiles * place.split / one.splits), place.end = int(tiles * (place.split + 1) / one.splits);
        job = one;
      }
    }
    __syncthreads();
    if (place.split < 0) return;
    if (outer_width(job.gradient.c) == 64) outer_item<T, 64>(job, place, memory);
    else outer_item<T, 128>(job, place, memory);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_outer, TrainOuterParams, kTrainThreads, kTrainResident)
