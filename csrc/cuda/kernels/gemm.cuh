// The block's matrix product: a tile of pixels that lies in shared memory times packed weights that stream through it.
//
// Unit of work: BM pixels x BN output channels, 128 threads.
//   16-bit types: 64 x 64 as 2 x 2 warps of 32 x 32; k in chunks of 32, two mma.m16n8k16 steps each: per step and warp
//   8 mma for 4 ldmatrix.x4. float: 32 x 64 on CUDA cores, each thread 2 x 8 in registers; k in chunks of 16.
//   Where there are no 64 output channels, Width = 32 puts the warps below each other: 128 x 32; float: 64 x 32.
// The pixels' tile A [BM][k_pad + kSkew] holds all of k and is reused for every block of BN output channels (a
// depthwise is computed once per tile). The weights' chunks pass through a ring of three buffers, filled by cp.async
// two chunks ahead, so that there is one __syncthreads per chunk. Results go through shared memory once more, as
// floats, so that epilogues see 8 neighbouring channels of a pixel and access global memory in groups of 16 bytes. No
// bank conflicts: rows of A are an odd multiple of 16 bytes, rows of results 8 banks more than a multiple of 32, and
// the groups of 16 bytes in a row of weights change places with the row's number (`slot`).
// Long loops pass thread_here() as `thread`: what is made of it is then not kept while other phases need the registers.
#pragma once
#include "primitives.cuh"

namespace dynroute::cuda {

template <class T, int Width = 64>
struct GemmTile {
  static constexpr int BN = Width, BM = 64 * 64 / BN, BK = 32;
  static constexpr int kSkew = 8;           // values that a row of A is longer than k_pad
  static constexpr int kRow = BK;           // row of a chunk of weights [BN][BK]
  static constexpr int kChunk = BN * kRow;  // values
  using Accumulators = float[2][4][4];      // of a warp's 32 x 32
};
template <int Width>
struct GemmTile<float, Width> {
  static constexpr int BN = Width, BM = 32 * 64 / BN, BK = 16;
  static constexpr int kSkew = 4;
  static constexpr int kRow = BN;  // [BK][BN]
  static constexpr int kChunk = BK * kRow;
  using Accumulators = float[BM / 16][BN / 8][1];
};

constexpr int kRing = 3;  // buffers of weights

template <class T, int Width = 64>
struct alignas(16) GemmShared {
  union {
    T weights[kRing][GemmTile<T, Width>::kChunk];
    float results[GemmTile<T, Width>::BM][Width + 8];
  };
};

// Values of A's row; and its bytes for a tile.
template <class T>
__host__ __device__ constexpr int row_of_a(int k_pad) {
  return k_pad + GemmTile<T>::kSkew;
}
template <class T, int Width = 64>
__host__ __device__ constexpr int bytes_of_a(int k_pad) {
  return GemmTile<T, Width>::BM * row_of_a<T>(k_pad) * int(sizeof(T));
}

template <class T, int Rows, int Columns, int Values>
__device__ inline void clear(float (&sums)[Rows][Columns][Values]) {
  float* flat = &sums[0][0][0];
#pragma unroll
  for (int i = 0; i < Rows * Columns * Values; ++i) flat[i] = 0;
}

// Where 16-byte group `group` of row `row` of a chunk of 16-bit weights lies in its row.
__device__ inline int slot(int row, int group) { return group ^ row / 2 % 4; }

// One chunk of the weights, k from `k`, output channels from `n`, on its way into `to`.
template <class T, int Width = 64>
__device__ inline void fetch_chunk(T* to, const Matrix& w, int n, int k, unsigned thread = threadIdx.x) {
  using S = GemmTile<T, Width>;
  constexpr int per_row = (kIsFloat<T> ? S::BN : S::BK) / kVector<T>, rows = kIsFloat<T> ? S::BK : S::BN;
  static_assert(per_row * rows % kThreads == 0, "every thread copies the same number of groups");
  const T* weight = static_cast<const T*>(w.weight);
#pragma unroll
  for (int i = 0; i < per_row * rows / kThreads; ++i) {
    const int group = int(thread) + i * kThreads, row = group / per_row, column = group % per_row * kVector<T>;
    const int at_n = n + (kIsFloat<T> ? column : row), at_k = k + (kIsFloat<T> ? row : column);
    const bool valid = at_n < w.n_pad;
    const int64_t at = kIsFloat<T> ? int64_t(at_k) * w.n_pad + at_n : int64_t(at_n) * w.k_pad + at_k;
    const int place = kIsFloat<T> ? column : slot(row, column / kVector<T>) * kVector<T>;
    copy_async(to + row * S::kRow + place, weight + (valid ? at : 0), valid);
  }
}

// `a(row, k)` is the address of a 16-byte group of A: values k to k + kVector of the tile's pixel `row`.
template <class T, int Width, class A>
__device__ inline void multiply_chunk(typename GemmTile<T, Width>::Accumulators& sums, const A& a, int k_of_a,
                                      const T* weights, unsigned thread = threadIdx.x) {
  using S = GemmTile<T, Width>;
  if constexpr (kIsFloat<T>) {
    const int column = thread % 8 * 4, row = thread / 8;
#pragma unroll
    for (int k = 0; k < S::BK; k += 4) {
      float4 pixel[S::BM / 16];
#pragma unroll
      for (int i = 0; i < S::BM / 16; ++i) pixel[i] = *reinterpret_cast<const float4*>(a(row + 16 * i, k_of_a + k));
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        float w[S::BN / 8];
#pragma unroll
        for (int j = 0; j < S::BN / 32; ++j)
          *reinterpret_cast<float4*>(w + 4 * j) =
              *reinterpret_cast<const float4*>(weights + (k + kk) * S::kRow + column + 32 * j);
#pragma unroll
        for (int i = 0; i < S::BM / 16; ++i) {
          const float value = kk == 0 ? pixel[i].x : kk == 1 ? pixel[i].y : kk == 2 ? pixel[i].z : pixel[i].w;
#pragma unroll
          for (int j = 0; j < S::BN / 8; ++j) sums[i][j][0] = fmaf(value, w[j], sums[i][j][0]);
        }
      }
    }
  } else {
    const int lane = thread % 32, warp = thread / 32;
    const int a_row = warp / (S::BN / 32) * 32 + lane % 16, a_k = k_of_a + lane / 16 * 8;
    const int w_row = warp % (S::BN / 32) * 32 + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int k = 0; k < S::BK; k += 16) {
      unsigned pixels[2][4], w[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) load_matrices(pixels[i], a(a_row + 16 * i, a_k + k));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_matrices(w[j], weights + (w_row + 16 * j) * S::kRow + slot(w_row, k / 8 + lane / 8 % 2) * 8);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) mma(sums[i][j], pixels[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1], T());
    }
  }
}

// The same for an A of rows that are `lda` apart, from its first value at the chunk's k.
template <class T, int Width = 64>
__device__ inline void multiply_chunk(typename GemmTile<T, Width>::Accumulators& sums, const T* a, int lda,
                                      const T* weights, unsigned thread = threadIdx.x) {
  multiply_chunk<T, Width>(sums, [=](int row, int k) { return a + row * lda + k; }, 0, weights, thread);
}

// sums += a[BM][k_count] * weights[k_begin + k, n + column]; called by the whole block. k_begin and k_count are
// multiples of 32. A must have been written by each thread, or be on its way by cp.async that this thread has
// committed: the first wait for weights is one for A as well, and the barrier is here.
// Behind the call the ring may still be read by other warps: the next call, or `finish`, begins with a barrier.
template <class T, int Width, class A>
__device__ inline void multiply(typename GemmTile<T, Width>::Accumulators& sums, const A& a, const Matrix& w, int n,
                                int k_begin, int k_count, GemmShared<T, Width>& shared, unsigned thread = threadIdx.x) {
  constexpr int BK = GemmTile<T, Width>::BK;
  const int chunks = k_count / BK;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRing - 1; ++i) {
    if (i < chunks) fetch_chunk<T, Width>(shared.weights[i], w, n, k_begin + i * BK, thread);
    commit_copies();
  }
  for (int i = 0; i < chunks; ++i) {
    wait_copies<kRing - 2>();
    __syncthreads();
    const int next = i + kRing - 1;
    if (next < chunks) fetch_chunk<T, Width>(shared.weights[next % kRing], w, n, k_begin + next * BK, thread);
    commit_copies();
    multiply_chunk<T, Width>(sums, a, i * BK, shared.weights[i % kRing], thread);
  }
  wait_copies<0>();
}
// The same for an A of rows that are `lda` apart.
template <class T, int Width>
__device__ inline void multiply(typename GemmTile<T, Width>::Accumulators& sums, const T* a, int lda, const Matrix& w,
                                int n, int k_begin, int k_count, GemmShared<T, Width>& shared,
                                unsigned thread = threadIdx.x) {
  const auto at = [=](int row, int k) { return a + row * lda + k; };
  multiply<T>(sums, at, w, n, k_begin, k_count, shared, thread);
}

// Lays the sums out as shared.results[pixel][channel]; ends with a barrier.
template <class T, int Width>
__device__ inline void finish(const typename GemmTile<T, Width>::Accumulators& sums, GemmShared<T, Width>& shared,
                              unsigned thread = threadIdx.x) {
  using S = GemmTile<T, Width>;
  __syncthreads();
  if constexpr (kIsFloat<T>) {
    const int column = thread % 8 * 4, row = thread / 8;
#pragma unroll
    for (int i = 0; i < S::BM / 16; ++i)
#pragma unroll
      for (int j = 0; j < S::BN / 32; ++j)
        *reinterpret_cast<float4*>(&shared.results[row + 16 * i][column + 32 * j]) = {
            sums[i][4 * j][0], sums[i][4 * j + 1][0], sums[i][4 * j + 2][0], sums[i][4 * j + 3][0]};
  } else {
    const int lane = thread % 32, warp = thread / 32;
    const int row = warp / (S::BN / 32) * 32 + lane / 4, column = warp % (S::BN / 32) * 32 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          *reinterpret_cast<float2*>(&shared.results[row + 16 * i + 8 * half][column + 8 * j]) = {
              sums[i][j][2 * half], sums[i][j][2 * half + 1]};
  }
  __syncthreads();
}

// Calls f(pixel, channel, values) for every pixel of the tile and every 8 channels from n on that are below w.n_pad;
// values are the results with the shift added. Threads with neighbouring numbers get neighbouring channels.
template <class T, int Width, class F>
__device__ inline void for_results(const GemmShared<T, Width>& shared, const Matrix& w, int n, F&& f,
                                   unsigned thread = threadIdx.x) {
  constexpr int groups = Width / 8;
  const int group = thread % groups, channel = n + group * 8;
  if (channel >= w.n_pad) return;
  const bool flip = thread % 8 >= 4;  // half of the threads read their second half first: no bank conflicts
  float shift[8];
#pragma unroll
  for (int i = 0; i < 8; i += 4)
    *reinterpret_cast<float4*>(shift + i) = *reinterpret_cast<const float4*>(w.shift + channel + i);
#pragma unroll 1
  for (int pixel = thread / groups; pixel < GemmTile<T, Width>::BM; pixel += kThreads / groups) {
    const float* from = &shared.results[pixel][group * 8];
    const float4 one = *reinterpret_cast<const float4*>(from + (flip ? 4 : 0));
    const float4 two = *reinterpret_cast<const float4*>(from + (flip ? 0 : 4));
    const float4 low = flip ? two : one, high = flip ? one : two;
    float values[8] = {low.x + shift[0],  low.y + shift[1],  low.z + shift[2],  low.w + shift[3],
                       high.x + shift[4], high.y + shift[5], high.z + shift[6], high.w + shift[7]};
    f(pixel, channel, values);
  }
}

}  // namespace dynroute::cuda
