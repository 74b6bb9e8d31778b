// What one warp does in a stage of the fused cell: 8 runs of pixels through depthwise and product, on its own.
//
// A lane makes the depthwise of its run (kRun pixels of a column) for a quarter of the channels, 16 bytes of them at a
// time: rows of the source pass by once for each of three columns, with the three taps of that column in registers. As
// mma's operands can be permuted at will, its results, rounded, are at once the lane's part of the left operand: no
// barrier and no shared memory between depthwise and product.
#pragma once
#include <type_traits>

#include "depthwise.cuh"

namespace dynroute::cuda {

// A pixel's 16-byte groups change places with its column, by `cell_swap` (an exclusive or): neighbours lie in different
// halves of the banks, and no two of 8 in the same.
template <int kGroups>
__device__ inline int cell_swap(int column) {
  if constexpr (kGroups == 4) return (column >> 1 & 1) << 1 | (column >> 2 & 1);
  else return (column & 1) << 2 | (column & 2) | (column >> 2 & 1);
}
// The same for row `row` of the weights. 16-bit: a lane's neighbours read rows 2 i and 2 i + 1; float: rows 4 apart.
template <class T, int K>
__device__ inline int cell_weight_swap(int row) {
  if constexpr (kIsFloat<T>) return row >> 2 & 3;
  else return K > 32 ? (row & 1) << 2 : 0;
}

// The same value, but unknown to the compiler: what is computed from it in a loop is computed where it is used, not
// kept in a register for each unrolled copy.
__device__ inline int unknown(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// c = start (x in even, y in odd columns) + a b: as `mma`, but spares the copies that make a sum begin with a shift.
#define DYNROUTE_MMA_FROM(T, name)                                                                                    \
  __device__ inline void mma_from(float (&c)[4], float2 start, const unsigned (&a)[4], unsigned b0, unsigned b1, T) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                               \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %10, %11};"                           \
                 : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(start.x), "f"(start.y));         \
  }
DYNROUTE_MMA_FROM(__half, "f16")
DYNROUTE_MMA_FROM(__nv_bfloat16, "bf16")
#undef DYNROUTE_MMA_FROM

// pack_relu in half the instructions: negative zeros may differ.
template <class T>
__device__ inline uint4 convert_relu(float (&values)[kVector<T>]) {
  if constexpr (kIsFloat<T>) {
    return pack_relu<T>(values);
  } else {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if constexpr (std::is_same_v<T, __half>)
        asm volatile("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(values[2 * i + 1]), "f"(values[2 * i]));
      else
        asm volatile("cvt.rn.relu.bf16x2.f32 %0, %1, %2;"
                     : "=r"(words[i])
                     : "f"(values[2 * i + 1]), "f"(values[2 * i]));
    return {words[0], words[1], words[2], words[3]};
  }
}

// Weights of one stage, on their way: [K][K], as in Matrix, [9][K] and [K].
template <class T, int K>
__device__ inline void fetch_stage_weights(T* weight, float* depthwise, float* shift, const Matrix& m,
                                           const float* taps) {
  constexpr int V = kVector<T>, kGroups = K / V;
  const int rows = kIsFloat<T> ? m.k_pad : m.n_pad, columns = kIsFloat<T> ? m.n_pad : m.k_pad;
#pragma unroll 1
  for (int at = threadIdx.x; at < K * kGroups; at += blockDim.x) {
    const int row = at / kGroups, group = at % kGroups;
    const bool valid = row < rows && group * V < columns;
    const T* from = static_cast<const T*>(m.weight) + (valid ? row * columns + group * V : 0);
    copy_async(weight + row * K + (group ^ cell_weight_swap<T, K>(row)) * V, from, valid);
  }
#pragma unroll 1
  for (int at = threadIdx.x; at < 10 * K / 4; at += blockDim.x) {
    const int tap = at / (K / 4), channel = at % (K / 4) * 4, channels = tap < 9 ? m.k : m.n;
    const float* from = tap < 9 ? taps + tap * m.k : m.shift;
    copy_async((tap < 9 ? depthwise + tap * K : shift) + channel, from + (channel < channels ? channel : 0),
               channel < channels);
  }
}

// `rows` rows of kWidth pixels of a map from (y0, x0) on, on their way; zeros outside the map and beyond its channels.
// A warp for each row.
template <class T, int K, int kWidth>
__device__ inline void fetch_halo(T* to, const T* x, int h, int w, int c, int y0, int x0, int rows) {
  constexpr int V = kVector<T>, kGroups = K / V;
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) {
    const bool inside = unsigned(y0 + row) < unsigned(h);
    const T* from = x + (int64_t(y0 + row) * w + x0) * c;
#pragma unroll 1
    for (int at = threadIdx.x % 32; at < kWidth * kGroups; at += 32) {
      const int column = at / kGroups, group = at % kGroups;
      const bool valid = inside && unsigned(x0 + column) < unsigned(w) && group * V < c;
      copy_async(to + (row * kWidth + column) * K + (group ^ cell_swap<kGroups>(column)) * V,
                 valid ? from + column * c + group * V : x, valid);
    }
  }
}

// A lane's share of a warp's 8 * kRun pixels as the product's left operand: its run's kRun pixels and a quarter of all
// channels. 16-bit: as mma wants it, [k / 32][pair of the run][mma of two][register].
template <class T, int K, int kRun>
struct CellPanel {
  static constexpr int kChunks = K / (4 * kVector<T>);
  unsigned a[kChunks][kRun / 2][2][4];
};
template <int K, int kRun>
struct CellPanel<float, K, kRun> {
  static constexpr int kChunks = K / 16;
  float a[kChunks][kRun][4];
};

// The 3x3 depthwise of a run: `from` is the first pixel that it reads, in column kStride * column of the source, whose
// groups have changed places by its columns' numbers divided by kStride.
template <class T, int K, int kRun, int kWidth, int kStride>
__device__ inline void cell_depthwise(CellPanel<T, K, kRun>& panel, const T* from, int column, const float* weights) {
  constexpr int V = kVector<T>;
  const int quarter = thread_here() % 4;
#pragma unroll
  for (int chunk = 0; chunk < CellPanel<T, K, kRun>::kChunks; ++chunk) {
    const int group = chunk * 4 + quarter;
    Taps<T, V> sums[kRun];
#pragma unroll 1
    for (int kx = 0; kx < 3; ++kx) {
      Taps<T, V> w[3];
#pragma unroll
      for (int ky = 0; ky < 3; ++ky) {
        float values[V];
#pragma unroll
        for (int i = 0; i < V; i += 4)
          *reinterpret_cast<float4*>(&values[i]) =
              *reinterpret_cast<const float4*>(weights + (ky * 3 + kx) * K + group * V + i);
        w[ky] = Taps<T, V>::of_floats(values);
      }
      const T* x = from + kx * K + (group ^ cell_swap<K / V>(column + kx / kStride)) * V;
#pragma unroll
      for (int row = 0; row < (kRun - 1) * kStride + 3; ++row) {
        const uint4 words = load_group(x + row * kWidth * K);
        const Taps<T, V> values = Taps<T, V>::of_words({words.x, words.y, words.z, words.w});
#pragma unroll
        for (int ky = 0; ky < 3; ++ky) {
          const int out = (row - ky) / kStride;
          if (row >= ky && (row - ky) % kStride == 0 && out < kRun) sums[out].add(values, w[ky]);
        }
      }
    }
#pragma unroll
    for (int out = 0; out < kRun; ++out) {
      if constexpr (kIsFloat<T>) {
#pragma unroll
        for (int i = 0; i < V; ++i) panel.a[chunk][out][i] = sums[out].value[i];
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) panel.a[chunk][out / 2][i / 2][out % 2 + i % 2 * 2] = sums[out].word(i);
      }
    }
  }
}

// The panel times the weights, plus shift, on tensor cores; f(pixel of the run, channel, values) gets 16 bytes' values.
// Four products of 8 columns at once: column 2 i + b of product j is channel 8 i + 2 j + b, so that a lane ends with 8
// neighbouring channels of each of its pixels. K is permuted alike: in a chunk of 32, the lane's 8 channels are what
// mma calls k = 2 i, 2 i + 1, 2 i + 8, 2 i + 9 of two products (i: the lane's number in its four).
template <class T, int K, int kRun, class F>
__device__ inline void cell_product(const CellPanel<T, K, kRun>& panel, const T* weights, const float* shift, F&& f) {
  constexpr int V = kVector<T>, kAtOnce = K > 64 ? 1 : 2;
  const int lane = threadIdx.x % 32, quarter = lane % 4, row = lane / 8 * 8 + lane / 4 % 2;
#pragma unroll 1
  for (int n = 0; n < K; n += 32) {
    const int channel = n + quarter * 8, place = quarter ^ cell_weight_swap<T, K>(row);
    float sums[kRun / 2][4][4];
#pragma unroll
    for (int chunk = 0; chunk < CellPanel<T, K, kRun>::kChunks; ++chunk) {
      const T* from = weights + (n + row) * K + (place ^ chunk * 4) * V;
#pragma unroll
      for (int j = 0; j < 4; j += kAtOnce) {
        uint4 w[kAtOnce];
        float2 start[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          w[i] = load_group(from + 2 * (j + i) * K);
          if (chunk == 0) start[i] = *reinterpret_cast<const float2*>(shift + channel + 2 * (j + i));
        }
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
            for (int pair = 0; pair < kRun / 2; ++pair) {
              float (&to)[4] = sums[pair][j + i];
              if (chunk == 0 && step == 0) mma_from(to, start[i], panel.a[0][pair][0], w[i].x, w[i].y, T());
              else mma(to, panel.a[chunk][pair][step], step ? w[i].z : w[i].x, step ? w[i].w : w[i].y, T());
            }
      }
    }
#pragma unroll
    for (int out = 0; out < kRun; ++out) {
      float values[V];
#pragma unroll
      for (int i = 0; i < V; ++i) values[i] = sums[out / 2][i / 2][out % 2 * 2 + i % 2];
      f(out, channel, values);
    }
  }
}

// The same in float on CUDA cores: each lane sums over its own quarter of the channels, 8 outputs at a time; then the
// four of a pixel exchange halves twice, so that a lane ends with 4 channels of half of its run.
template <int K, int kRun, class F>
__device__ inline void cell_product(const CellPanel<float, K, kRun>& panel, const float* weights, const float* shift,
                                    F&& f) {
  const int quarter = threadIdx.x % 4;
  const bool odd = quarter & 1, high = quarter & 2;
#pragma unroll 1
  for (int n = 0; n < K; n += 8) {
    float sums[kRun][8] = {};
#pragma unroll
    for (int k = 0; k < K / 4; ++k) {
      const int row = k / 4 * 16 + quarter * 4 + k % 4;  // whose swap is the quarter
      float w[8];
#pragma unroll
      for (int j = 0; j < 8; j += 4)
        *reinterpret_cast<float4*>(w + j) =
            *reinterpret_cast<const float4*>(weights + row * K + ((n + j) / 4 ^ quarter) * 4);
#pragma unroll
      for (int out = 0; out < kRun; ++out)
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[out][j] = fmaf(panel.a[k / 4][out][k % 4], w[j], sums[out][j]);
    }
    const int channel = n + (odd ? 4 : 0);
    const float4 start = *reinterpret_cast<const float4*>(shift + channel);
#pragma unroll
    for (int out = 0; out < kRun / 2; ++out) {
      float half[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float (&mine)[8] = sums[out + i * (kRun / 2)];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          half[i][j] = (odd ? mine[j + 4] : mine[j]) + __shfl_xor_sync(~0u, odd ? mine[j] : mine[j + 4], 1);
      }
      float values[4] = {start.x, start.y, start.z, start.w};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        values[j] += (high ? half[1][j] : half[0][j]) + __shfl_xor_sync(~0u, high ? half[0][j] : half[1][j], 2);
      f(out + (high ? kRun / 2 : 0), channel, values);
    }
  }
}

// One stage: `bands` bands of kRun rows of kColumns pixels, from a source as wide as they need. Each warp takes one
// unit of 8 runs, neighbours as far as a row goes, and needs nobody else's results; there are no more units than warps
// (see cell_bands). Lanes beyond the last run repeat it. begin(row, column) returns the f of cell_product.
template <class T, int K, int kRun, int kColumns, int kStride = 1, class Begin>
__device__ inline void cell_stage(const T* from, int bands, const T* weights, const float* depthwise,
                                  const float* shift, Begin&& begin) {
  const int runs = kColumns * bands, at = thread_here() / 4, run = min(at, runs - 1);
  if (at / 8 * 8 >= runs) return;
  const int row = run / kColumns * kRun, column = run % kColumns;
  CellPanel<T, K, kRun> panel;
  constexpr int kWidth = (kColumns - 1) * kStride + 3;
  cell_depthwise<T, K, kRun, kWidth, kStride>(panel, from + (row * kWidth + column) * kStride * K, column, depthwise);
  cell_product(panel, weights, shift, begin(row, column));
}

}  // namespace dynroute::cuda
