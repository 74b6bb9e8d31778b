#include "cell.h"

#include "primitives.cuh"
#include "schedule.cuh"

namespace dynroute::cuda {

// Where things lie in shared memory, in this order, for tiles of K channels.
template <class T, int K>
struct CellLayout {
  static constexpr int kRun = cell_run(K, sizeof(T));
  static constexpr int kGroups = K / kVector<T>;  // of 16 bytes, in a pixel
  T* weight[2];                                   // [K][K], as in Matrix
  float* depthwise[2];                            // [9][K]
  float* shift[2];                                // [K]
  T* mid;                                         // [run * bands][kMidWidth][K]
  T* x;                                           // [run * bands + 2][kXWidth][K]

  __device__ CellLayout(unsigned char* memory, int bands) {
    T* at = reinterpret_cast<T*>(memory);
    for (int i = 0; i < 2; ++i, at += K * K) weight[i] = at;
    float* floats = reinterpret_cast<float*>(at);
    for (int i = 0; i < 2; ++i, floats += 9 * K) depthwise[i] = floats;
    for (int i = 0; i < 2; ++i, floats += K) shift[i] = floats;
    mid = reinterpret_cast<T*>(floats);
    x = mid + kRun * bands * kMidWidth * K;
  }
};

// Where 16-byte group `group` of a pixel in column `column` (or of row `column` of the weights) lies among its groups:
// neighbours lie in different halves of the banks, and no two of 8 in the same.
template <int kGroups>
__device__ inline int cell_place(int column, int group) {
  static_assert(kGroups >= 4, "");
  if constexpr (kGroups == 4) return group ^ (column >> 1 & 1) << 1 ^ (column >> 2 & 1);
  else return group ^ (column & 1) << 2 ^ (column & 2) ^ (column >> 2 & 1);
}
template <class T, int K>
__device__ inline int cell_weight_place(int row, int group) {
  constexpr int groups = K / kVector<T>;
  return kIsFloat<T> ? group ^ (row >> 2 & 3) : cell_place<groups>(row, group);
}

// A lane's share of a warp's 8 * run pixels as the product's left operand: all K channels, those that the lane's
// position in its group of four gives it. 16-bit: as mma wants it, [k / 32][pair of the run][mma of two][register].
template <class T, int K>
struct CellPanel {
  static constexpr int kRun = cell_run(K, sizeof(T)), kChunks = K / (4 * kVector<T>);
  unsigned a[kChunks][kRun / 2][2][4];
};
template <int K>
struct CellPanel<float, K> {
  static constexpr int kRun = cell_run(K, sizeof(float)), kChunks = K / 16;
  float a[kChunks][kRun][4];
};

// The 3x3 depthwise of a run: `column` is its first column of the source, `from` that column's first row.
template <class T, int K, int kWidth>
__device__ inline void cell_depthwise(CellPanel<T, K>& panel, const T* from, int column, const float* weights) {
  constexpr int V = kVector<T>, kRun = CellPanel<T, K>::kRun;
  const int quarter = threadIdx.x % 4;
#pragma unroll
  for (int chunk = 0; chunk < CellPanel<T, K>::kChunks; ++chunk) {
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
      const T* x = from + kx * K + cell_place<K / V>(column + kx, group) * V;
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
        const uint4 group = pack<T>(sums[out]);
        panel.a[chunk][out / 2][0][out % 2] = group.x;
        panel.a[chunk][out / 2][0][out % 2 + 2] = group.y;
        panel.a[chunk][out / 2][1][out % 2] = group.z;
        panel.a[chunk][out / 2][1][out % 2 + 2] = group.w;
      }
    }
  }
}

// The panel times the weights, plus shift; f(pixel of the run, channel, values) for each group of 16 bytes.
template <class T, int K, class F>
__device__ inline void cell_product(const CellPanel<T, K>& panel, const T* weights, const float* shift, F&& f) {
  constexpr int V = kVector<T>, kRun = CellPanel<T, K>::kRun;
  const int lane = threadIdx.x % 32, quarter = lane % 4;
  if constexpr (kIsFloat<T>) {
    // Each lane sums over its own quarter of the channels, 8 outputs at a time; then the four of a pixel exchange.
#pragma unroll 1
    for (int n = 0; n < K; n += 8) {
      float sums[kRun][8] = {};
#pragma unroll
      for (int chunk = 0; chunk < CellPanel<T, K>::kChunks; ++chunk)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int k = chunk * 16 + quarter * 4 + i;
          float w[8];
#pragma unroll
          for (int j = 0; j < 8; j += 4)
            *reinterpret_cast<float4*>(w + j) =
                *reinterpret_cast<const float4*>(weights + k * K + cell_weight_place<T, K>(k, (n + j) / 4) * 4);
#pragma unroll
          for (int out = 0; out < kRun; ++out)
#pragma unroll
            for (int j = 0; j < 8; ++j) sums[out][j] = fmaf(panel.a[chunk][out][i], w[j], sums[out][j]);
        }
      const bool odd = quarter & 1, high = quarter & 2;
      float half[kRun][4];
#pragma unroll
      for (int out = 0; out < kRun; ++out)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float theirs = __shfl_xor_sync(~0u, odd ? sums[out][j] : sums[out][j + 4], 1);
          half[out][j] = (odd ? sums[out][j + 4] : sums[out][j]) + theirs;
        }
      const int channel = n + (odd ? 4 : 0);
#pragma unroll
      for (int out = 0; out < kRun / 2; ++out) {
        float values[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float theirs = __shfl_xor_sync(~0u, high ? half[out][j] : half[out + kRun / 2][j], 2);
          values[j] = (high ? half[out + kRun / 2][j] : half[out][j]) + theirs + shift[channel + j];
        }
        f(out + (high ? kRun / 2 : 0), channel, values);
      }
    }
  } else {
    // Four products of 8 columns at once. Column 2 i + b of product j is channel 8 i + 2 j + b, so that a lane ends
    // with 8 neighbouring channels of each of its pixels.
    const int row = lane / 8 * 8 + lane / 4 % 2;
#pragma unroll 1
    for (int n = 0; n < K; n += 32) {
      const int channel = n + quarter * 8;
      float sums[kRun / 2][4][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 start = *reinterpret_cast<const float2*>(shift + channel + 2 * j);
#pragma unroll
        for (int pair = 0; pair < kRun / 2; ++pair) {
          sums[pair][j][0] = sums[pair][j][2] = start.x;
          sums[pair][j][1] = sums[pair][j][3] = start.y;
        }
      }
#pragma unroll
      for (int chunk = 0; chunk < CellPanel<T, K>::kChunks; ++chunk)
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          uint4 w[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int at = n + row + 2 * (j + i);
            w[i] = load_group(weights + at * K + cell_weight_place<T, K>(at, chunk * 4 + quarter) * V);
          }
#pragma unroll
          for (int step = 0; step < 2; ++step)
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
              for (int pair = 0; pair < kRun / 2; ++pair)
                mma(sums[pair][j + i], panel.a[chunk][pair][step], step ? w[i].z : w[i].x, step ? w[i].w : w[i].y, T());
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
}

// One stage of a tile: kColumns x run * bands pixels, from a source two columns wider; f(row, column, channel, values).
// Warps take units of 8 runs, neighbours in a row as far as there are, and need no one else's results.
template <class T, int K, int kColumns, class F>
__device__ inline void cell_stage(const T* from, int bands, const T* weights, const float* depthwise,
                                  const float* shift, F&& f) {
  constexpr int kRun = CellLayout<T, K>::kRun;
  const int runs = kColumns * bands;
  for (int first = threadIdx.x / 32 * 8; first < runs; first += blockDim.x / 32 * 8) {
    const int at = first + threadIdx.x % 32 / 4;
    const int run = at < runs ? at : runs - 1, row = run / kColumns * kRun, column = run % kColumns;
    CellPanel<T, K> panel;
    cell_depthwise<T, K, kColumns + 2>(panel, from + (row * (kColumns + 2) + column) * K, column, depthwise);
    cell_product<T, K>(panel, weights, shift, [&](int out, int channel, float(&values)[kVector<T>]) {
      if (at < runs) f(row + out, column, channel, values);
    });
  }
}

// Weights of both stages, on their way.
template <class T, int K>
__device__ inline void cell_fetch_weights(const CellLayout<T, K>& to, const CellParams& p, int scale) {
  constexpr int V = kVector<T>, kGroups = K / V;
  const int c = p.level[scale].c;
  for (int i = 0; i < 2; ++i) {
    const Matrix& m = p.pointwise[scale][i];
    for (int at = threadIdx.x; at < K * kGroups; at += blockDim.x) {
      const int row = at / kGroups, group = at % kGroups;
      const bool valid = row < m.k_pad && group * V < m.n_pad;  // k_pad and n_pad are the same
      const T* from = static_cast<const T*>(m.weight) + (valid ? row * m.k_pad + group * V : 0);
      copy_async(to.weight[i] + row * K + cell_weight_place<T, K>(row, group) * V, from, valid);
    }
    for (int at = threadIdx.x; at < 10 * K / 4; at += blockDim.x) {
      const int tap = at / (K / 4), channel = at % (K / 4) * 4;
      const bool valid = channel < c;
      if (tap < 9) copy_async(to.depthwise[i] + tap * K + channel, p.depthwise[scale][i] + (valid ? tap * c + channel : 0), valid);
      else copy_async(to.shift[i] + channel, m.shift + (valid ? channel : 0), valid);
    }
  }
}

// X with the tile's halo of two pixels, on its way; zeros outside the map and beyond its channels. A warp per row.
template <class T, int K>
__device__ inline void cell_fetch_x(T* to, const T* x, const Level& level, int y0, int x0, int rows) {
  constexpr int V = kVector<T>, kGroups = K / V;
  for (int row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) {
    const int y = y0 + row;
    const bool inside = unsigned(y) < unsigned(level.h);
    for (int at = threadIdx.x % 32; at < kXWidth * kGroups; at += 32) {
      const int column = at / kGroups, group = at % kGroups;
      const bool valid = inside && unsigned(x0 + column) < unsigned(level.w) && group * V < level.c;
      const T* from = x + (valid ? (int64_t(y) * level.w + x0 + column) * level.c + group * V : 0);
      copy_async(to + (row * kXWidth + column) * K + cell_place<kGroups>(column, group) * V, from, valid);
    }
  }
}

template <class T, int K>
__device__ inline void cell_tile(const CellParams& p, const Work& work, const CellTiles& tiles, bool new_weights,
                                 unsigned char* memory) {
  constexpr int V = kVector<T>, kGroups = K / V;
  const CellLayout<T, K> shared(memory, tiles.bands);
  const Level& level = p.level[work.scale];
  const int h = level.h, w = level.w, c = level.c;
  const Node& node = p.row.nodes[work.sample * kScales + work.scale];
  const int64_t map = int64_t(work.sample) * h * w * c;
  const T* x = static_cast<const T*>(level.map[node.x_map]) + map;
  T* result = static_cast<T*>(level.map[node.out_map]) + map;
  const int y0 = work.tile / tiles.across * tiles.rows, x0 = work.tile % tiles.across * kCellWidth;

  __syncthreads();  // the last tile has been read
  if (new_weights) cell_fetch_weights<T, K>(shared, p, work.scale);
  cell_fetch_x<T, K>(shared.x, x, level, y0 - 2, x0 - 2, tiles.rows + 4);
  commit_copies();
  wait_copies<0>();
  __syncthreads();

  cell_stage<T, K, kMidWidth>(
      shared.x, tiles.bands, shared.weight[0], shared.depthwise[0], shared.shift[0],
      [&](int row, int column, int channel, float(&values)[V]) {
        const bool inside = unsigned(y0 - 1 + row) < unsigned(h) && unsigned(x0 - 1 + column) < unsigned(w);
#pragma unroll
        for (int i = 0; i < V; ++i) values[i] = inside ? fmaxf(values[i], 0) : 0;
        store_group(shared.mid + (row * kMidWidth + column) * K + cell_place<kGroups>(column, channel / V) * V,
                    pack<T>(values));
      });
  __syncthreads();

  const int rows = min(tiles.rows, h - y0), columns = min(kCellWidth, w - x0);
  cell_stage<T, K, kCellWidth>(
      shared.mid, tiles.bands, shared.weight[1], shared.depthwise[1], shared.shift[1],
      [&](int row, int column, int channel, float(&values)[V]) {
        if (row >= rows || column >= columns || channel >= c) return;
        float residual[V];
        unpack<T>(load_group(shared.x + ((row + 2) * kXWidth + column + 2) * K +
                             cell_place<kGroups>(column + 2, channel / V) * V),
                  residual);
#pragma unroll
        for (int i = 0; i < V; ++i) values[i] = fmaxf(values[i] + residual[i], 0);
        store_group(result + (int64_t(y0 + row) * w + x0 + column) * c + channel, pack<T>(values));
      });

  if (threadIdx.x == 0) {
    const int made = (min(y0 + rows + 1, h) - max(y0 - 1, 0)) * (min(x0 + columns + 1, w) - max(x0 - 1, 0));
    const int64_t stage = 9 * c + int64_t(c) * c, own = rows * columns;
    count(p.io->nodes + ((int64_t(work.sample) * p.rows + p.row_index) * kScales + work.scale) * 5 + 1, 2 * stage * own);
    count(p.io->other + work.sample * 3 + 2, stage * (made - own));
  }
}

template <class T>
__device__ inline void cell(const CellParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  unsigned bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  int totals[kScales];
#pragma unroll
  for (int s = 0; s < kScales; ++s)
    totals[s] = p.depthwise[s][0] ? cell_tiles(p.level[s], sizeof(T), int(bytes), int(blockDim.x)).total : 0;
  int scale = -1;  // whose weights are here
  Work work;
  for (int at = blockIdx.x; find_work(p.row, kOpen, totals, p.n, at, work); at += gridDim.x) {
    const CellTiles tiles = cell_tiles(p.level[work.scale], sizeof(T), int(bytes), int(blockDim.x));
    const bool fresh = work.scale != scale;
    scale = work.scale;
    switch (cell_channels(p.level[scale].c)) {
      case 32: cell_tile<T, 32>(p, work, tiles, fresh, memory); break;
      case 64: cell_tile<T, 64>(p, work, tiles, fresh, memory); break;
      case 128:
        if constexpr (!kIsFloat<T>) cell_tile<T, 128>(p, work, tiles, fresh, memory);
        break;
    }
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(cell, CellParams, kCellMaxThreads, 1)
