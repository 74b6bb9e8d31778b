// The block's matrix product: a tile of pixels that lies in shared memory times packed weights that stream through it.
// Every product of these kernels is this one, but the fused cell's, whose left operand never leaves registers
// (cell_stage.cuh).
//
// Unit of work: BM pixels x BN output channels. A tile of pixels A [BM][k_pad + kSkew] holds all of k, or a slice, and is
// reused for every block of BN output channels.
//   16-bit types: a warp has 32 pixels x 16 or 32 channels; k in chunks of 32, two mma.m16n8k16 steps each: at 32 x 32
//   per step 8 mma for 4 ldmatrix.x4. float: on CUDA cores, 16 or 32 sums to a thread; k in chunks of 16.
// The weights' chunks pass through a ring of buffers, filled by cp.async two or more chunks ahead, so that there is one
// __syncthreads per chunk. Results go through shared memory once more, as floats, so that epilogues see 8 neighbouring
// channels of a pixel and access global memory in groups of 16 bytes. No bank conflicts: rows of A are an odd multiple
// of 16 bytes, and groups in a row of weights (`slot`) and of results (GemmShared) change places with the row's number.
// What a loop over chunks needs is computed before it: addresses in shared memory are 32 bits and go up by constants.
// Long loops pass thread_here() as `thread`: what is made of it is then not kept while other phases need the registers.
#pragma once
#include "primitives.cuh"

namespace dynroute::cuda {

// How the product of a block of kBlock threads is cut, and where everything lies.
template <class T_, int BM_, int BN_, int kBlock_ = kThreads>
struct GemmTile {
  using T = T_;
  static constexpr int BM = BM_, BN = BN_, kBlock = kBlock_;
  static constexpr bool kCores = kIsFloat<T>;  // CUDA cores; else tensor cores
  static constexpr int BK = kCores ? 16 : 32;
  static constexpr int kSkew = kCores ? 4 : 8;      // values that a row of A is longer than k_pad
  static constexpr int kRow = kCores ? BN : BK;     // of a chunk of weights: [BK][BN]; 16-bit: [BN][BK]
  static constexpr int kChunk = BN * BK;            // values
  static constexpr int kGroups = kChunk / kVector<T> / kBlock;  // of 16 bytes, that a thread copies of a chunk
  static_assert(kGroups * kBlock * kVector<T> == kChunk, "every thread copies the same number of groups");

  // The threads: on tensor cores warps of 32 rows x kWide columns, side by side first; on CUDA cores kAcross threads
  // to a row, with 4 neighbouring columns at a time.
  static constexpr int kWide = BM * BN / kBlock;
  static constexpr int kAcross = kCores ? (BN / 4 < kBlock / 16 ? BN / 4 : kBlock / 16) : BN / kWide;
  static constexpr int kDown = kBlock / kAcross;  // float: rows from one of a thread's to the next
  static constexpr int kReads = kCores ? BM / kDown : 2;  // rows of A that a thread reads
  static_assert(kCores || kWide == 16 || kWide == 32);

  // sums[i][j][e]. kRows x kColumns of them are one thread's, counted by row(i) and column(j).
  using Accumulators = float[kReads][kCores ? BN / kAcross : kWide / 8][kCores ? 1 : 4];
  static constexpr int kRows = kCores ? kReads : 4, kColumns = kCores ? BN / kAcross : kWide / 4;
  static constexpr int kWarpRows = kCores ? kBlock / 32 : BM / 32;  // warps that hold different rows
  static constexpr int kFirstLane = kCores ? kAcross : 4;  // lanes that differ from this bit on share columns

  static __device__ int warp_row(unsigned thread = threadIdx.x) { return thread / 32 / (kCores ? 1 : kAcross); }
  static __device__ int warp_column(unsigned thread = threadIdx.x) {
    return kCores ? 0 : thread / 32 % kAcross * kWide;
  }
  static __device__ int row(int i, unsigned thread = threadIdx.x) {
    return kCores ? thread / kAcross + kDown * i : warp_row(thread) * 32 + thread % 32 / 4 + 8 * i;
  }
  static __device__ int column(int j, unsigned thread = threadIdx.x) {
    return kCores ? j / 4 * 4 * kAcross + thread % kAcross * 4 + j % 4
                  : warp_column(thread) + j / 2 * 8 + thread % 4 * 2 + j % 2;
  }
  static __device__ float value(const Accumulators& sums, int i, int j) {
    return kCores ? sums[i][j][0] : sums[i / 2][j / 2][i % 2 * 2 + j % 2];
  }
};

// 128 threads, and a thread's sums as they suit kernels with five blocks to a multiprocessor.
template <class T, int Width = 64>
using SmallTile = GemmTile<T, (kIsFloat<T> ? 2048 : 4096) / Width, Width>;

constexpr int kRing = 3;  // buffers of weights

template <class Tile>
struct alignas(16) GemmShared {
  union {
    typename Tile::T weights[kRing][Tile::kChunk];
    float results[Tile::BM][Tile::BN];
  };
  // Where results of 8 channels of a pixel lie: channel / 8 == group.
  static __device__ int place(int pixel, int group) { return (group ^ pixel % 4) * 8; }
};

// Values of A's row; and its bytes for a tile.
template <class Tile>
__host__ __device__ constexpr int row_of_a(int k_pad) {
  return k_pad + Tile::kSkew;
}
template <class Tile>
__host__ __device__ constexpr int bytes_of_a(int k_pad) {
  return Tile::BM * row_of_a<Tile>(k_pad) * int(sizeof(typename Tile::T));
}

template <int Rows, int Columns, int Values>
__device__ inline void clear(float (&sums)[Rows][Columns][Values]) {
  float* flat = &sums[0][0][0];
#pragma unroll
  for (int i = 0; i < Rows * Columns * Values; ++i) flat[i] = 0;
}

// Where 16-byte group `group` of row `row` of a chunk of 16-bit weights lies in its row.
__device__ inline int slot(int row, int group) { return group ^ row / 2 % 4; }

// A thread's part of the chunks of a block of output channels, one after another: from global memory, on their way.
template <class Tile>
struct WeightStream {
  using T = typename Tile::T;
  static constexpr int kPerRow = Tile::kRow / kVector<T>, kStep = Tile::kBlock / kPerRow;  // rows to the next group
  const T* from;
  int step;      // in `from`, to the thread's next group
  int advance;   // to the next chunk
  unsigned to;   // shared address in the first buffer
  int rows;      // 16-bit: n_pad less this thread's first row; float: 1 if its columns are there, else less

  // Output channels from `n`, k from `k` on; `buffers`: of the ring.
  __device__ WeightStream(const Matrix& w, int n, int k, const T* buffers, unsigned thread = threadIdx.x) {
    const int row = thread / kPerRow, column = thread % kPerRow * kVector<T>;
    const T* weight = static_cast<const T*>(w.weight);
    if constexpr (Tile::kCores) {
      from = weight + int64_t(k + row) * w.n_pad + n + column;
      step = kStep * w.n_pad, advance = Tile::BK * w.n_pad, rows = n + column < w.n_pad ? 1 << 30 : 0;
    } else {
      from = weight + int64_t(n + row) * w.k_pad + k + column;
      step = kStep * w.k_pad, advance = Tile::BK, rows = w.n_pad - n - row;
    }
    const int place = Tile::kCores ? column : slot(row, column / kVector<T>) * kVector<T>;
    to = shared_address(buffers + row * Tile::kRow + place);
  }
  // The next chunk into buffer `buffer`. What there is no weight for becomes zeros: nothing is read, whatever the address.
  __device__ void fetch(int buffer) {
#pragma unroll
    for (int i = 0; i < Tile::kGroups; ++i)
      copy_async(to + unsigned(buffer * Tile::kChunk + i * kStep * Tile::kRow) * unsigned(sizeof(T)),
                 from + i * step, i * kStep < rows);
    from += advance;
  }
};

// A in rows that are `lda` values apart: where a thread reads it.
template <class Tile>
struct PixelRows {
  using T = typename Tile::T;
  unsigned first, step;

  __device__ PixelRows(const T* a, int lda, unsigned thread = threadIdx.x) {
    const int row = Tile::kCores ? thread / Tile::kAcross : Tile::warp_row(thread) * 32 + thread % 16;
    first = shared_address(a + row * lda) + (Tile::kCores ? 0 : thread % 32 / 16 * 16);
    step = (Tile::kCores ? Tile::kDown : 16) * lda * int(sizeof(T));
  }
  // Of the group of 16 bytes that begins at k, of the thread's i-th row; k counts from A's first value.
  __device__ unsigned operator()(int i, int k) const { return first + i * step + k * unsigned(sizeof(T)); }
};

// sums += A's values k to k + BK times a chunk of weights. `a(i, k)`: as of PixelRows.
template <class Tile, class A>
__device__ inline void multiply_chunk(typename Tile::Accumulators& sums, const A& a, int k_of_a,
                                      const typename Tile::T* weights, unsigned thread = threadIdx.x) {
  using T = typename Tile::T;
  if constexpr (Tile::kCores) {
    constexpr int kFours = Tile::kColumns / 4;
    const T* from = weights + thread % Tile::kAcross * 4;
#pragma unroll
    for (int k = 0; k < Tile::BK; k += 4) {
      float4 pixel[Tile::kReads];
#pragma unroll
      for (int i = 0; i < Tile::kReads; ++i) pixel[i] = load_shared(a(i, k_of_a + k));
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        float w[Tile::kColumns];
#pragma unroll
        for (int j = 0; j < kFours; ++j)
          *reinterpret_cast<float4*>(w + 4 * j) =
              *reinterpret_cast<const float4*>(from + (k + kk) * Tile::kRow + 4 * Tile::kAcross * j);
#pragma unroll
        for (int i = 0; i < Tile::kReads; ++i) {
          const float value = kk == 0 ? pixel[i].x : kk == 1 ? pixel[i].y : kk == 2 ? pixel[i].z : pixel[i].w;
#pragma unroll
          for (int j = 0; j < Tile::kColumns; ++j) sums[i][j][0] = fmaf(value, w[j], sums[i][j][0]);
        }
      }
    }
  } else {
    const int lane = thread % 32, row = Tile::warp_column(thread) + lane / 16 * 8 + lane % 8;
    const unsigned from = shared_address(weights), in_row = row * Tile::kRow * unsigned(sizeof(T));
    const unsigned group = slot(row, lane / 8 % 2) * 16;
#pragma unroll
    for (int k = 0; k < Tile::BK; k += 16) {
      unsigned pixels[2][4], w[Tile::kWide / 16][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) load_matrices(pixels[i], a(i, k_of_a + k));
#pragma unroll
      for (int j = 0; j < Tile::kWide / 16; ++j)
        load_matrices(w[j], from + in_row + (group ^ k * 2) + j * 16 * Tile::kRow * unsigned(sizeof(T)));
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kWide / 8; ++j) mma(sums[i][j], pixels[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1], T());
    }
  }
}

// sums += a[BM][k_count] * weights[k_begin + k, n + column]; called by the whole block. k_begin and k_count are
// multiples of 32. A must have been written by each thread, or be on its way by cp.async that this thread has
// committed: the first wait for weights is one for A as well, and the barrier is here.
// Behind the call the ring may still be read by other warps: the next call, or `finish`, begins with a barrier.
template <class Tile, class A>
__device__ inline void multiply(typename Tile::Accumulators& sums, const A& a, const Matrix& w, int n, int k_begin,
                                int k_count, GemmShared<Tile>& shared, unsigned thread = threadIdx.x) {
  const int chunks = k_count / Tile::BK;
  WeightStream<Tile> stream(w, n, k_begin, shared.weights[0], thread);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRing - 1; ++i) {
    if (i < chunks) stream.fetch(i);
    commit_copies();
  }
  int buffer = 0;
#pragma unroll 1
  for (int i = 0; i < chunks; ++i) {
    wait_copies<kRing - 2>();
    __syncthreads();
    if (i + kRing - 1 < chunks) stream.fetch(buffer == 0 ? kRing - 1 : buffer - 1);
    commit_copies();
    multiply_chunk<Tile>(sums, a, i * Tile::BK, shared.weights[buffer], thread);
    buffer = buffer == kRing - 1 ? 0 : buffer + 1;
  }
  wait_copies<0>();
}

// Lays the sums out as shared.results[pixel][channel]; ends with a barrier.
template <class Tile>
__device__ inline void finish(const typename Tile::Accumulators& sums, GemmShared<Tile>& shared,
                              unsigned thread = threadIdx.x) {
  __syncthreads();
  const int row = Tile::row(0, thread), column = Tile::column(0, thread);
  float* const to = &shared.results[row][column % 8];  // other rows of this thread are swapped alike
  static_assert(Tile::kCores ? Tile::kDown % 4 == 0 : true);
  if constexpr (Tile::kCores) {
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kColumns; j += 4)
        *reinterpret_cast<float4*>(to + Tile::kDown * i * Tile::BN +
                                   shared.place(row, (column + j * Tile::kAcross) / 8)) = {
            sums[i][j][0], sums[i][j + 1][0], sums[i][j + 2][0], sums[i][j + 3][0]};
  } else {
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kColumns; j += 2)
        *reinterpret_cast<float2*>(to + 8 * i * Tile::BN + shared.place(row, column / 8 + j / 2)) = {
            Tile::value(sums, i, j), Tile::value(sums, i, j + 1)};
  }
  __syncthreads();
}

// Calls f(pixel, channel, values) for every pixel of the tile and every 8 channels from n on that are below w.n_pad;
// values are the results with the shift added. Threads with neighbouring numbers get neighbouring channels.
template <class Tile, class F>
__device__ inline void for_results(const GemmShared<Tile>& shared, const Matrix& w, int n, F&& f,
                                   unsigned thread = threadIdx.x) {
  constexpr int groups = Tile::BN / 8;
  const int group = thread % groups, channel = n + group * 8;
  if (channel >= w.n_pad) return;
  const bool flip = thread % 8 >= 4;  // half of the threads read their second half first: no bank conflicts
  float shift[8];
#pragma unroll
  for (int i = 0; i < 8; i += 4)
    *reinterpret_cast<float4*>(shift + i) = *reinterpret_cast<const float4*>(w.shift + channel + i);
#pragma unroll 1
  for (int pixel = thread / groups; pixel < Tile::BM; pixel += Tile::kBlock / groups) {
    const float* from = &shared.results[pixel][shared.place(pixel, group)];
    const float4 one = *reinterpret_cast<const float4*>(from + (flip ? 4 : 0));
    const float4 two = *reinterpret_cast<const float4*>(from + (flip ? 0 : 4));
    const float4 low = flip ? two : one, high = flip ? one : two;
    float values[8] = {low.x + shift[0],  low.y + shift[1],  low.z + shift[2],  low.w + shift[3],
                       high.x + shift[4], high.y + shift[5], high.z + shift[6], high.w + shift[7]};
    f(pixel, channel, values);
  }
}

}  // namespace dynroute::cuda
