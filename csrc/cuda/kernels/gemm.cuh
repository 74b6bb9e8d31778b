// The block's matrix product: a tile of pixels that lies in shared memory times packed weights that stream through it.
// Every product of these kernels is this one, but the fused cell's, whose left operand never leaves registers
// (cell_stage.cuh).
//
// Unit of work: BM pixels x BN output channels. A tile of pixels A [BM][k_pad + kSkew] holds all of k, or a slice, and
// is reused for every block of BN output channels.
//   16-bit types: a warp has 32 or 16 pixels x 32 channels; k in chunks of 32, two mma.m16n8k16 steps each: at 32 x 32
//   per step 8 mma for 4 ldmatrix.x4. Channels are dealt to mma's columns so that a lane ends with 8 neighbouring ones
//   of each of its pixels. float: on CUDA cores, 4 neighbouring channels at a time; k in chunks of 16.
// So results go from registers to global memory in groups of 16 bytes, and need no shared memory and no barrier.
// The weights' chunks of all blocks pass through one ring of buffers, filled by cp.async two to six chunks ahead, as
// many as there is memory for, with one __syncthreads per chunk: the next block's are on their way while results are
// stored. No bank conflicts: rows of A are an odd multiple of 16 bytes, and groups of 16 bytes in a row of weights
// change places with the row's number
// (`slot`).
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
  static constexpr int kSkew = kCores ? 4 : 8;                  // values that a row of A is longer than k_pad
  static constexpr int kRow = kCores ? BN : BK;                 // of a chunk of weights: [BK][BN]; 16-bit: [BN][BK]
  static constexpr int kChunk = BN * BK;                        // values
  static constexpr int kGroups = kChunk / kVector<T> / kBlock;  // of 16 bytes, that a thread copies of a chunk
  static_assert(kGroups * kBlock * kVector<T> == kChunk, "every thread copies the same number of groups");
  static_assert(kChunk * sizeof(T) == chunk_bytes(BN), "the host knows");

  // The threads: on tensor cores warps of kTall rows x 32 columns, side by side first; on CUDA cores kAcross threads to
  // a row, with 4 neighbouring columns at a time.
  static constexpr int kTall = BM * BN / kBlock;
  static constexpr int kAcross = kCores ? (BN / 4 < kBlock / 16 ? BN / 4 : kBlock / 16) : BN / 32;
  static constexpr int kDown = kBlock / kAcross;                   // float: rows from one of a thread's to the next
  static constexpr int kReads = kCores ? BM / kDown : kTall / 16;  // rows of A that a thread reads
  static_assert(kCores || kTall == 16 || kTall == 32);

  // sums[i][j][e]. kRows x kColumns of them are one thread's, counted by row(i) and column(j).
  using Accumulators = float[kReads][kCores ? BN / kAcross : 4][kCores ? 1 : 4];
  static constexpr int kRows = kCores ? kReads : 2 * kReads, kColumns = kCores ? BN / kAcross : 8;
  static constexpr int kRowStep = kCores ? kDown : 8;                  // from one of a thread's rows to the next
  static constexpr int kWarpRows = kCores ? kBlock / 32 : BM / kTall;  // warps that hold different rows
  static constexpr int kFirstLane = kCores ? kAcross : 4;  // lanes that differ from this bit on share columns

  static __device__ int warp_row(unsigned thread = threadIdx.x) { return thread / 32 / (kCores ? 1 : kAcross); }
  static __device__ int warp_column(unsigned thread = threadIdx.x) { return kCores ? 0 : thread / 32 % kAcross * 32; }
  static __device__ int row(int i, unsigned thread = threadIdx.x) {
    return (kCores ? thread / kAcross : warp_row(thread) * kTall + thread % 32 / 4) + kRowStep * i;
  }
  static __device__ int column(int j, unsigned thread = threadIdx.x) {
    return kCores ? j / 4 * 4 * kAcross + thread % kAcross * 4 + j % 4 : warp_column(thread) + thread % 4 * 8 + j;
  }
  static __device__ float value(const Accumulators& sums, int i, int j) {
    return kCores ? sums[i][j][0] : sums[i / 2][j / 2][i % 2 * 2 + j % 2];
  }
  static __device__ void set(Accumulators& sums, int i, int j, float to) {
    if constexpr (kCores) sums[i][j][0] = to;
    else sums[i / 2][j / 2][i % 2 * 2 + j % 2] = to;
  }
};

// 128 threads, and a thread's sums as they suit kernels with five blocks to a multiprocessor.
template <class T, int Width = 64>
using SmallTile = GemmTile<T, (kIsFloat<T> ? 2048 : 4096) / Width, Width>;

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
__device__ inline int slot(int row, int group) { return group ^ row / 8 % 4; }

// A thread's part of a sequence of chunks, on their way from global memory: of output channels n to n_end, block by
// block, each from k on k_count values.
template <class Tile>
struct WeightStream {
  using T = typename Tile::T;
  static constexpr int kPerRow = Tile::kRow / kVector<T>, kStep = Tile::kBlock / kPerRow;  // rows to the next group
  const T* from;
  int step;                    // in `from`, to the thread's next group
  int advance, jump;           // to the next chunk; after a block's last one, to the next block
  unsigned to;                 // shared address in the first buffer
  int valid;                   // output channels that there are, less this thread's first
  int of_block, chunks, more;  // chunks: of a block, still of this block, still of all

  __device__ WeightStream(const Matrix& w, int n, int n_end, int k, int k_count, const T* buffers,
                          unsigned thread = threadIdx.x) {
    const int row = thread / kPerRow, column = thread % kPerRow * kVector<T>;
    const T* weight = static_cast<const T*>(w.weight);
    if constexpr (Tile::kCores) {
      from = weight + int64_t(k + row) * w.n_pad + n + column;
      step = kStep * w.n_pad, advance = Tile::BK * w.n_pad, jump = Tile::BN - k_count * w.n_pad;
      valid = w.n_pad - n - column;
    } else {
      from = weight + int64_t(n + row) * w.k_pad + k + column;
      step = kStep * w.k_pad, advance = Tile::BK, jump = Tile::BN * w.k_pad - k_count;
      valid = w.n_pad - n - row;
    }
    const int place = Tile::kCores ? column : slot(row, column / kVector<T>) * kVector<T>;
    to = shared_address(buffers + row * Tile::kRow + place);
    chunks = of_block = k_count / Tile::BK, more = ceil_div(n_end - n, Tile::BN) * of_block;
  }
  // The next chunk into buffer `buffer`, if there is one. What there is no weight for becomes zeros, and is not read.
  __device__ void fetch(int buffer) {
    if (more <= 0) return;
#pragma unroll
    for (int i = 0; i < Tile::kGroups; ++i)
      copy_async(to + unsigned(buffer * Tile::kChunk + i * kStep * Tile::kRow) * unsigned(sizeof(T)), from + i * step,
                 valid > (Tile::kCores ? 0 : i * kStep));
    skip();
  }
  // What is on its way already.
  __device__ void skip() {
    from += advance;
    --more;
    if (--chunks == 0) chunks = of_block, from += jump, valid -= Tile::BN;
  }
};

// A in rows that are `lda` values apart: where a thread reads it.
template <class Tile>
struct PixelRows {
  using T = typename Tile::T;
  unsigned first, step;

  __device__ PixelRows(const T* a, int lda, unsigned thread = threadIdx.x) {
    const int row = Tile::kCores ? thread / Tile::kAcross : Tile::warp_row(thread) * Tile::kTall + thread % 16;
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
    // mma number t of 8 columns: column 2 q + b is channel 8 q + 2 t + b, which becomes value b of lane q of four
    const int lane = thread % 32, row = Tile::warp_column(thread) + lane % 8 / 2 * 8 + lane % 2 + lane / 16 * 2;
    const unsigned from = shared_address(weights), in_row = row * Tile::kRow * unsigned(sizeof(T));
    const unsigned group = slot(row, lane / 8 % 2) * 16;
#pragma unroll
    for (int k = 0; k < Tile::BK; k += 16) {
      unsigned pixels[Tile::kReads][4], w[2][4];
#pragma unroll
      for (int i = 0; i < Tile::kReads; ++i) load_matrices(pixels[i], a(i, k_of_a + k));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_matrices(w[j], from + in_row + (group ^ k * 2) + j * 4 * Tile::kRow * unsigned(sizeof(T)));
#pragma unroll
      for (int i = 0; i < Tile::kReads; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) mma(sums[i][j], pixels[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1], T());
    }
  }
}

// The first chunks, on their way into the ring.
template <class Tile>
__device__ inline void begin_ring(WeightStream<Tile>& stream, int ahead) {
#pragma unroll 1
  for (int i = 0; i < ahead; ++i) {
    stream.fetch(i);
    commit_copies();
  }
}

// sums += a * a block's weights, the next in the ring's sequence; called by the whole block, behind `begin_ring` with
// the same `ahead`. A must have been written by each thread, or be on its way by cp.async that this thread has
// committed before the ring's first: the first wait for weights is one for A as well, and the barrier is here.
// `buffer`: of the next chunk, 0 at first. Behind the call ring and A may still be read by other warps.
template <class Tile, class A>
__device__ inline void multiply(typename Tile::Accumulators& sums, const A& a, WeightStream<Tile>& stream,
                                const typename Tile::T* ring, int ahead, int& buffer, unsigned thread = threadIdx.x) {
  const int chunks = stream.of_block;
#pragma unroll 1
  for (int i = 0; i < chunks; ++i) {
    wait_copies_but(ahead - 1);
    __syncthreads();
    stream.fetch(buffer == 0 ? ahead : buffer - 1);
    commit_copies();
    multiply_chunk<Tile>(sums, a, i * Tile::BK, ring + buffer * Tile::kChunk, thread);
    buffer = buffer == ahead ? 0 : buffer + 1;
  }
}

// Calls f(i, j, pixel, channel, values) for this thread's results, 16 bytes' values at a time, of channels from n on
// that are below w.n_pad, with the shift added: 4 lanes (float: 8 or more) have a pixel's neighbouring channels. i, j:
// which of the thread's pixels, and which 16 bytes of one.
template <class Tile, class F>
__device__ inline void for_results(const typename Tile::Accumulators& sums, const Matrix& w, int n, F&& f,
                                   unsigned thread = threadIdx.x) {
  constexpr int V = kVector<typename Tile::T>;
#pragma unroll
  for (int j = 0; j < Tile::kColumns; j += V) {
    const int channel = n + Tile::column(j, thread);
    if (channel >= w.n_pad) return;
    float shift[V];
#pragma unroll
    for (int e = 0; e < V; e += 4)
      *reinterpret_cast<float4*>(shift + e) = *reinterpret_cast<const float4*>(w.shift + channel + e);
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      float values[V];
#pragma unroll
      for (int e = 0; e < V; ++e) values[e] = Tile::value(sums, i, j + e) + shift[e];
      f(i, j / V, Tile::row(i, thread), channel, values);
    }
  }
}

}  // namespace dynroute::cuda
