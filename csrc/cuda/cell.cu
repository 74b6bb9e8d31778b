#include <type_traits>

#include "cell.h"
#include "primitives.cuh"
#include "schedule.cuh"

namespace dynroute::cuda {

// A tile, as one thread of the block finds it while the others compute the last one; in shared memory.
struct CellPlace {
  int at, scale, sample;     // number of the work; scale < 0: there is no more
  int new_scale;             // other weights than the tile's before
  int bands, rows, columns;  // rows and columns of outputs that lie in the map
  int y0, x0, h, w, c;
  const void* x;  // the sample's maps
  void* out;
};
static_assert(2 * sizeof(CellPlace) <= kCellHead, "the room for descriptions of tiles");

// Where things lie in shared memory, in this order, for tiles of K channels. Stage 2 reads up to two rows beyond mid,
// for pixels below the tile that nobody stores: so X has to follow, and is only read then.
template <class T, int K>
struct CellShared {
  CellPlace* place;     // [2]
  T* weight[2];         // [K][K], as in Matrix
  float* depthwise[2];  // [9][K]
  float* shift[2];      // [K]
  T* mid;               // [run * bands][kMidWidth][K]
  T* x;                 // [run * bands + 2][kXWidth][K]

  __device__ CellShared(unsigned char* memory, int bands) {
    place = reinterpret_cast<CellPlace*>(memory);
    T* at = reinterpret_cast<T*>(memory + kCellHead);
    for (int i = 0; i < 2; ++i, at += K * K) weight[i] = at;
    float* floats = reinterpret_cast<float*>(at);
    for (int i = 0; i < 2; ++i, floats += 9 * K) depthwise[i] = floats;
    for (int i = 0; i < 2; ++i, floats += K) shift[i] = floats;
    mid = reinterpret_cast<T*>(floats);
    x = mid + cell_run(K, sizeof(T)) * bands * kMidWidth * K;
  }
};

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

// ReLU, rounded. Negative zeros and NaN may differ from fmaxf's.
template <class T>
__device__ inline uint4 pack_relu(float (&values)[kVector<T>]) {
  if constexpr (kIsFloat<T>) {
#pragma unroll
    for (float& value : values) value = fmaxf(value, 0);
    return pack<T>(values);
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

// The 3x3 depthwise of a run: `from` is the first pixel that it reads, in column `column` of the source.
template <class T, int K, int kRun, int kWidth>
__device__ inline void cell_depthwise(CellPanel<T, K, kRun>& panel, const T* from, int column, const float* weights) {
  constexpr int V = kVector<T>;
  const int quarter = threadIdx.x % 4;
#pragma unroll
  for (int chunk = 0; chunk < CellPanel<T, K, kRun>::kChunks; ++chunk) {
    const int group = chunk * 4 + quarter;
    float sums[kRun][V] = {};
#pragma unroll 1
    for (int kx = 0; kx < 3; ++kx) {
      float w[3][V];
#pragma unroll
      for (int ky = 0; ky < 3; ++ky)
#pragma unroll
        for (int i = 0; i < V; i += 4)
          *reinterpret_cast<float4*>(&w[ky][i]) =
              *reinterpret_cast<const float4*>(weights + (ky * 3 + kx) * K + group * V + i);
      const T* x = from + kx * K + (group ^ cell_swap<K / V>(column + kx)) * V;
#pragma unroll
      for (int row = 0; row < kRun + 2; ++row) {
        float values[V];
        unpack<T>(load_group(x + row * kWidth * K), values);
#pragma unroll
        for (int ky = 0; ky < 3; ++ky) {
          const int out = row - ky;
          if (out < 0 || out >= kRun) continue;
#pragma unroll
          for (int i = 0; i < V; ++i) sums[out][i] = fmaf(values[i], w[ky][i], sums[out][i]);
        }
      }
    }
#pragma unroll
    for (int out = 0; out < kRun; ++out) {
      if constexpr (kIsFloat<T>) {
#pragma unroll
        for (int i = 0; i < V; ++i) panel.a[chunk][out][i] = sums[out][i];
      } else {
        const uint4 rounded = pack<T>(sums[out]);
        panel.a[chunk][out / 2][0][out % 2] = rounded.x;
        panel.a[chunk][out / 2][0][out % 2 + 2] = rounded.y;
        panel.a[chunk][out / 2][1][out % 2] = rounded.z;
        panel.a[chunk][out / 2][1][out % 2 + 2] = rounded.w;
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

// One stage: `bands` bands of kRun rows of kColumns pixels, from a source two columns wider. Each warp takes one unit
// of 8 runs, neighbours as far as a row goes, and needs nobody else's results; there are no more units than warps (see
// cell_bands). Lanes beyond the last run repeat it. begin(row, column) returns the f of cell_product.
template <class T, int K, int kRun, int kColumns, class Begin>
__device__ inline void cell_stage(const T* from, int bands, const T* weights, const float* depthwise,
                                  const float* shift, Begin&& begin) {
  const int runs = kColumns * bands, at = threadIdx.x / 4, run = min(at, runs - 1);
  if (at / 8 * 8 >= runs) return;
  const int row = run / kColumns * kRun, column = run % kColumns;
  CellPanel<T, K, kRun> panel;
  cell_depthwise<T, K, kRun, kColumns + 2>(panel, from + (row * (kColumns + 2) + column) * K, column, depthwise);
  cell_product(panel, weights, shift, begin(row, column));
}

// Weights of both stages, on their way.
template <class T, int K>
__device__ inline void cell_fetch_weights(const CellShared<T, K>& to, const CellParams& p, int scale) {
  constexpr int V = kVector<T>, kGroups = K / V;
  const int c = p.level[scale].c;
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const Matrix& m = p.pointwise[scale][i];  // k and n are both c
#pragma unroll 1
    for (int at = threadIdx.x; at < K * kGroups; at += blockDim.x) {
      const int row = at / kGroups, group = at % kGroups;
      const bool valid = row < m.k_pad && group * V < m.k_pad;
      const T* from = static_cast<const T*>(m.weight) + (valid ? row * m.k_pad + group * V : 0);
      copy_async(to.weight[0] + (i * K + row) * K + (group ^ cell_weight_swap<T, K>(row)) * V, from, valid);
    }
#pragma unroll 1
    for (int at = threadIdx.x; at < 10 * K / 4; at += blockDim.x) {
      const int tap = at / (K / 4), channel = at % (K / 4) * 4;
      const float* from = tap < 9 ? p.depthwise[scale][i] + tap * c : m.shift;
      float* row = tap < 9 ? to.depthwise[0] + (i * 9 + tap) * K : to.shift[0] + i * K;
      copy_async(row + channel, from + (channel < c ? channel : 0), channel < c);
    }
  }
}

// X with a halo of two pixels, on its way; zeros outside the map and beyond its channels. A warp for each row.
template <class T, int K>
__device__ inline void cell_fetch_x(T* to, const CellPlace& place, int rows) {
  constexpr int V = kVector<T>, kGroups = K / V;
  const T* x = static_cast<const T*>(place.x);
  const int h = place.h, w = place.w, c = place.c, y0 = place.y0 - 2, x0 = place.x0 - 2;
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) {
    const bool inside = unsigned(y0 + row) < unsigned(h);
    const T* from = x + (int64_t(y0 + row) * w + x0) * c;
#pragma unroll 1
    for (int at = threadIdx.x % 32; at < kXWidth * kGroups; at += 32) {
      const int column = at / kGroups, group = at % kGroups;
      const bool valid = inside && unsigned(x0 + column) < unsigned(w) && group * V < c;
      copy_async(to + (row * kXWidth + column) * K + (group ^ cell_swap<kGroups>(column)) * V,
                 valid ? from + column * c + group * V : x, valid);
    }
  }
}

// Describes work number `at`; `last_scale` is that of the block's tile before.
template <class T>
__device__ inline void cell_find(CellPlace& to, const CellParams& p, int at, int last_scale) {
  int bytes, totals[kScales];
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
#pragma unroll
  for (int s = 0; s < kScales; ++s)
    totals[s] = p.depthwise[s][0] ? cell_tiles(p.level[s], sizeof(T), bytes, int(blockDim.x)).total : 0;
  Work work;
  to.at = at, to.scale = -1;
  if (!find_work(p.row, kOpen, totals, p.n, at, work)) return;
  const Level& level = p.level[work.scale];
  const CellTiles tiles = cell_tiles(level, sizeof(T), bytes, int(blockDim.x));
  const Node& node = p.row.nodes[work.sample * kScales + work.scale];
  const int64_t map = int64_t(work.sample) * level.h * level.w * level.c;
  to.scale = work.scale, to.sample = work.sample, to.new_scale = work.scale != last_scale;
  to.h = level.h, to.w = level.w, to.c = level.c;
  to.y0 = work.tile / tiles.across * tiles.rows, to.x0 = work.tile % tiles.across * kCellWidth;
  to.bands = tiles.bands;
  to.rows = min(tiles.rows, level.h - to.y0), to.columns = min(kCellWidth, level.w - to.x0);
  to.x = static_cast<const T*>(level.map[node.x_map]) + map;
  to.out = static_cast<T*>(level.map[node.out_map]) + map;
}

__device__ inline void cell_count(const CellPlace& place, const CellParams& p) {
  const int made_rows = min(place.y0 + place.rows + 1, place.h) - max(place.y0 - 1, 0);
  const int made_columns = min(place.x0 + place.columns + 1, place.w) - max(place.x0 - 1, 0);
  const int64_t stage = 9 * place.c + int64_t(place.c) * place.c, own = place.rows * place.columns;
  const int64_t node = ((int64_t(place.sample) * p.rows + p.row_index) * kScales + place.scale) * 5;
  count(p.io->nodes + node + 1, 2 * stage * own);
  count(p.io->other + place.sample * 3 + 2, stage * (made_rows * made_columns - own));
}

template <class T, int K>
__device__ inline void cell_tile(const CellParams& p, const CellPlace& place, CellPlace& next, unsigned char* memory) {
  constexpr int V = kVector<T>, kGroups = K / V, kRun = cell_run(K, sizeof(T));
  const CellShared<T, K> shared(memory, place.bands);
  const bool speaker = threadIdx.x == blockDim.x - 32;  // the last warp has the least to do
  if (place.new_scale) cell_fetch_weights<T, K>(shared, p, place.scale);
  cell_fetch_x<T, K>(shared.x, place, kRun * place.bands + 2);
  commit_copies();
  if (speaker) cell_find<T>(next, p, place.at + gridDim.x, place.scale);
  wait_copies<0>();
  __syncthreads();

  cell_stage<T, K, kRun, kMidWidth>(
      shared.x, place.bands, shared.weight[0], shared.depthwise[0], shared.shift[0], [&](int row, int column) {
        const int y = place.y0 - 1 + row, x = place.x0 - 1 + column, h = unsigned(x) < unsigned(place.w) ? place.h : 0;
        T* to = shared.mid + (row * kMidWidth + column) * K;
        const int swap = cell_swap<kGroups>(column);
        return [=](int out, int channel, float (&values)[V]) {
          const unsigned mask = unsigned(y + out) < unsigned(h) ? ~0u : 0;  // outside the map it is zero
          uint4 group = pack_relu<T>(values);
          group.x &= mask, group.y &= mask, group.z &= mask, group.w &= mask;
          store_group(to + out * kMidWidth * K + (channel / V ^ swap) * V, group);
        };
      });
  __syncthreads();

  cell_stage<T, K, kCellRun2, kCellWidth>(
      shared.mid, (place.rows + kCellRun2 - 1) / kCellRun2, shared.weight[1], shared.depthwise[1], shared.shift[1],
      [&](int row, int column) {
        const int rows = column < place.columns ? place.rows - row : 0, c = place.c, stride = place.w * (c / V);
        const T* residual = shared.x + ((row + 2) * kXWidth + column + 2) * K;
        const unsigned group = unsigned((place.y0 + row) * place.w + place.x0 + column) * (c / V);
        const int swap = cell_swap<kGroups>(column + 2);
        return [=](int out, int channel, float (&values)[V]) {
          if (out >= rows || channel >= c) return;
          float x[V];
          unpack<T>(load_group(residual + out * kXWidth * K + (channel / V ^ swap) * V), x);
#pragma unroll
          for (int i = 0; i < V; ++i) values[i] += x[i];
          store_global(static_cast<T*>(place.out) + int64_t(group + out * unknown(stride) + channel / V) * V,
                       pack_relu<T>(values));
        };
      });
  if (speaker) cell_count(place, p);
}

template <class T>
__device__ inline void cell(const CellParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  CellPlace* places = reinterpret_cast<CellPlace*>(memory);
  if (threadIdx.x == 0) cell_find<T>(places[0], p, blockIdx.x, -1);
  for (;;) {
    __syncthreads();
    if (places[0].scale < 0) return;
    switch (cell_channels(places[0].c)) {
      case 32:
        cell_tile<T, 32>(p, places[0], places[1], memory);
        break;
      case 64:
        cell_tile<T, 64>(p, places[0], places[1], memory);
        break;
      case 128:
        if constexpr (!kIsFloat<T>) cell_tile<T, 128>(p, places[0], places[1], memory);
        break;
    }
    __syncthreads();  // all have done with the tile
    if (threadIdx.x == 0) places[0] = places[1];
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(cell, CellParams, kCellMaxThreads, 1)
