// The fused cell: both stages of a tile in one pass, so that what lies between them never leaves the chip.
//
// Blocks walk over the tiles of all fused scales and open samples. A tile is 16 columns by `rows` (16 at 64 channels in
// 16 bits), read with a halo of two pixels by cp.async into shared memory, zeros outside the map. Stage 1 makes 18
// columns by rows + 2 into shared memory as T, zeros outside the map; stage 2 makes the tile, adds X from the tile
// there, and stores 16 bytes per lane. Weights of both stages stay in shared memory as long as the scale does. In a
// stage each warp has one unit of 8 columns' runs (cell_stage.cuh), so that a tile has three places where warps meet:
// X has come, stage 1 is done, stage 2 is done. Between them one warp's mma runs while others' depthwise does, and a
// block loads while the multiprocessor's other block computes. One thread finds the next tile meanwhile.
// 256 threads, two blocks per multiprocessor, or 512 and one (cell_shape); 128 registers.
//
// Measured on an H100: 29 us for 512 tiles of 16 x 16 x 64 channels in float16, some 13000 cycles of a multiprocessor
// for each. Estimated before, from SASS and the emulator, with the depthwise still in float: shared memory 7400 (128
// bytes per cycle; depthwise 4700, of which taps 2200 and pixels 2500; weights 960, the rest 1800), instructions 7000
// (4 per cycle), FMA 2700, mma 2400 (1024 per cycle), global memory 5800 (84 KB at 14.4 bytes per cycle; 4600 if L2
// serves the halo). So wide runs pay most: 6 pixels in stage 1 as registers allow; in stage 2 4, as that gives 8 warps
// a unit each. Bytes: 1.28 of X and the result alone, 1.21 with the weights once per tile on both sides.
#include "cell.h"
#include "cell_stage.cuh"
#include "tile_scheduler.cuh"

namespace dynroute::cuda {

// A tile, as one thread of the block finds it while the others compute the last one; in shared memory.
struct CellTile {
  int at, scale, sample;     // its number; scale < 0: there is no more
  int new_scale;             // other weights than the tile's before
  int bands, rows, columns;  // rows and columns of outputs that lie in the map
  int y0, x0, h, w, c;
  const void* x;  // the sample's maps
  void* out;
};
static_assert(2 * sizeof(CellTile) <= kCellHead, "the room for descriptions of tiles");

// Where things lie in shared memory, in this order behind two CellTile, for tiles of K channels. Stage 2 reads up to
// two rows beyond mid, for pixels below the tile that nobody stores: so X has to follow, and is only read then.
template <class T, int K>
struct CellShared {
  T* weight[2];         // [K][K], as in Matrix
  float* depthwise[2];  // [9][K]
  float* shift[2];      // [K]
  T* mid;               // [run * bands][kMidWidth][K]
  T* x;                 // [run * bands + 2][kXWidth][K]

  __device__ CellShared(unsigned char* memory, int bands) {
    T* at = reinterpret_cast<T*>(memory + kCellHead);
    for (int i = 0; i < 2; ++i, at += K * K) weight[i] = at;
    float* floats = reinterpret_cast<float*>(at);
    for (int i = 0; i < 2; ++i, floats += 9 * K) depthwise[i] = floats;
    for (int i = 0; i < 2; ++i, floats += K) shift[i] = floats;
    mid = reinterpret_cast<T*>(floats);
    x = mid + cell_run(K, sizeof(T)) * bands * kMidWidth * K;
  }
};

// Describes tile number `at`; `last_scale` is that of the block's tile before.
template <class T>
__device__ inline void find_cell_tile(CellTile& to, const CellParams& p, int at, int last_scale) {
  int totals[kScales];
  const int bytes = shared_bytes();
#pragma unroll
  for (int s = 0; s < kScales; ++s)
    totals[s] = p.depthwise[s][0] ? cell_tiling(p.maps[s].shape, sizeof(T), bytes, int(blockDim.x)).total : 0;
  ScheduledTile found;
  to.at = at, to.scale = -1;
  if (!find_tile(p.row, kOpen, [&](int s) { return totals[s]; }, p.n, at, found)) return;
  const ScaleMaps& maps = p.maps[found.scale];
  const CellTiling tiling = cell_tiling(maps.shape, sizeof(T), bytes, int(blockDim.x));
  const Node& node = p.row.nodes[found.sample * kScales + found.scale];
  const int64_t map = int64_t(found.sample) * maps.shape.h * maps.shape.w * maps.shape.c;
  to.scale = found.scale, to.sample = found.sample, to.new_scale = found.scale != last_scale;
  to.h = maps.shape.h, to.w = maps.shape.w, to.c = maps.shape.c;
  to.y0 = found.tile / tiling.across * tiling.rows, to.x0 = found.tile % tiling.across * kCellWidth;
  to.bands = tiling.bands;
  to.rows = min(tiling.rows, maps.shape.h - to.y0), to.columns = min(kCellWidth, maps.shape.w - to.x0);
  to.x = static_cast<const T*>(maps.map[node.x_map]) + map;
  to.out = static_cast<T*>(maps.map[node.out_map]) + map;
}

__device__ inline void count_cell_tile(const CellTile& tile, const CellParams& p) {
  const int made_rows = min(tile.y0 + tile.rows + 1, tile.h) - max(tile.y0 - 1, 0);
  const int made_columns = min(tile.x0 + tile.columns + 1, tile.w) - max(tile.x0 - 1, 0);
  const int64_t stage = 9 * tile.c + int64_t(tile.c) * tile.c, own = tile.rows * tile.columns;
  const int64_t node = node_index(tile.sample, p.rows, p.row_index, tile.scale);
  count(p.io->node_macs + node * kNodeParts + kCellPart, 2 * stage * own);
  count(p.io->sample_macs + tile.sample * kSampleParts + kHaloPart, stage * (made_rows * made_columns - own));
}

template <class T, int K>
__device__ inline void make_cell_tile(const CellParams& p, const CellTile& tile, CellTile& next,
                                      unsigned char* memory) {
  constexpr int V = kVector<T>, kGroups = K / V, kRun = cell_run(K, sizeof(T));
  const CellShared<T, K> shared(memory, tile.bands);
  const bool finds_and_counts = threadIdx.x == blockDim.x - 32;  // of the last warp, which has the least to do
  if (tile.new_scale)
#pragma unroll 1
    for (int i = 0; i < 2; ++i)
      fetch_stage_weights<T, K>(shared.weight[0] + i * K * K, shared.depthwise[0] + i * 9 * K, shared.shift[0] + i * K,
                                p.pointwise[tile.scale][i], p.depthwise[tile.scale][i]);
  fetch_halo<T, K, kXWidth>(shared.x, static_cast<const T*>(tile.x), tile.h, tile.w, tile.c, tile.y0 - 2, tile.x0 - 2,
                            kRun * tile.bands + 2);
  commit_copies();
  if (finds_and_counts) find_cell_tile<T>(next, p, tile.at + gridDim.x, tile.scale);
  wait_copies<0>();
  __syncthreads();

  cell_stage<T, K, kRun, kMidWidth>(
      shared.x, tile.bands, shared.weight[0], shared.depthwise[0], shared.shift[0], [&](int row, int column) {
        const int y = tile.y0 - 1 + row, x = tile.x0 - 1 + column, h = unsigned(x) < unsigned(tile.w) ? tile.h : 0;
        T* to = shared.mid + (row * kMidWidth + column) * K;
        const int swap = cell_swap<kGroups>(column);
        return [=](int out, int channel, float (&values)[V]) {
          const unsigned mask = unsigned(y + out) < unsigned(h) ? ~0u : 0;  // outside the map it is zero
          uint4 group = convert_relu<T>(values);
          group.x &= mask, group.y &= mask, group.z &= mask, group.w &= mask;
          store_group(to + out * kMidWidth * K + (channel / V ^ swap) * V, group);
        };
      });
  __syncthreads();

  cell_stage<T, K, kCellRun2, kCellWidth>(
      shared.mid, ceil_div(tile.rows, kCellRun2), shared.weight[1], shared.depthwise[1], shared.shift[1],
      [&](int row, int column) {
        const int rows = column < tile.columns ? tile.rows - row : 0, c = tile.c, stride = tile.w * (c / V);
        const T* residual = shared.x + ((row + 2) * kXWidth + column + 2) * K;
        const unsigned group = unsigned((tile.y0 + row) * tile.w + tile.x0 + column) * (c / V);
        const int swap = cell_swap<kGroups>(column + 2);
        return [=](int out, int channel, float (&values)[V]) {
          if (out >= rows || channel >= c) return;
          float x[V];
          unpack<T>(load_group(residual + out * kXWidth * K + (channel / V ^ swap) * V), x);
#pragma unroll
          for (int i = 0; i < V; ++i) values[i] += x[i];
          store_global(static_cast<T*>(tile.out) + int64_t(group + out * unknown(stride) + channel / V) * V,
                       convert_relu<T>(values));
        };
      });
  if (finds_and_counts) count_cell_tile(tile, p);
}

template <class T>
__device__ inline void cell(const CellParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  CellTile* tiles = reinterpret_cast<CellTile*>(memory);
  if (threadIdx.x == 0) find_cell_tile<T>(tiles[0], p, blockIdx.x, -1);
  for (;;) {
    __syncthreads();
    if (tiles[0].scale < 0) return;
    switch (cell_channels(tiles[0].c)) {
      case 32:
        make_cell_tile<T, 32>(p, tiles[0], tiles[1], memory);
        break;
      case 64:
        make_cell_tile<T, 64>(p, tiles[0], tiles[1], memory);
        break;
      case 128:
        if constexpr (!kIsFloat<T>) make_cell_tile<T, 128>(p, tiles[0], tiles[1], memory);
        break;
    }
    __syncthreads();  // all have done with the tile
    if (threadIdx.x == 0) tiles[0] = tiles[1];
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(cell, CellParams, kCellMaxThreads, 1)
