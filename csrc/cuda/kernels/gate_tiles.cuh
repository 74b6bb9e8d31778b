// A task of the gate: X of a run of tiles, and the gate's sums over it (aggregate_route.cu says how), for the kernels
// that walk over such tasks.
#pragma once
#include "gate.cuh"

namespace dynroute::cuda {

template <class T>
constexpr DType kAggregateType = kIsFloat<T> ? DType::kFloat : DType::kHalf;  // both 16-bit types are alike

// One task's node and place. Tiles, blocks of 4x4 pixels, their 2 x 2 quads, and a quad's 2 x 2 pixels are all counted
// row by row. A's row of a pixel is ((pixel * 4) + quad) * blocks + block; the small gate's of a block is
// tile * blocks + block: rows that are written together lie in different banks.
template <class T>
struct Task {
  XSources<T> x;
  T* out;  // null: X is not stored
  const AggregateTiling& tiling;
  int begin, end;  // tiles
  bool small;      // the gate sees X at a quarter of its size

  __device__ int blocks() const { return tiling.blocks_y * tiling.blocks_x; }  // 1, 2 or 4
  __device__ int log_blocks() const { return blocks() / 2; }
  __device__ int y_in(int block) const { return (tiling.blocks_y == 2 ? block / 2 : 0) * 4; }
  __device__ int x_in(int block) const { return (tiling.blocks_x == 2 ? block % 2 : 0) * 4; }
  __device__ int tiles_of_a() const { return small ? aggregate_rows_of_a(blocks()) >> log_blocks() : 1; }
};

// A tile's first pixel.
struct TilePlace {
  int y, x;
  __device__ TilePlace(const AggregateTiling& tiling, int tile) {
    const int row = tile / tiling.across;
    y = row * tiling.blocks_y * 4, x = (tile - row * tiling.across) * tiling.blocks_x * 4;
  }
};

// Which of a thread's rows of the product are pixels of the gate's map; bit i: row Tile::row(i) of A, which holds one
// tile,
template <class T, class Tile>
__device__ inline unsigned rows_of_tile(const Task<T>& task, const TilePlace& place) {
  const int thread = thread_here();
  const int blocks = task.blocks(), log_blocks = task.log_blocks();
  const bool whole = place.y + 4 * task.tiling.blocks_y <= task.x.h && place.x + 4 * task.tiling.blocks_x <= task.x.w;
  unsigned rows = 0;
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) rows |= unsigned(Tile::row(i, thread) < 16 * blocks) << i;
  if (whole) return rows;
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int row = Tile::row(i, thread), block = row & (blocks - 1), in_block = row >> log_blocks;
    const int y = place.y + task.y_in(block) + in_block % 4 / 2 * 2 + in_block / 4 / 2;
    const int x = place.x + task.x_in(block) + in_block % 2 * 2 + in_block / 4 % 2;
    if (y >= task.x.h || x >= task.x.w) rows &= ~(1u << i);
  }
  return rows;
}
// or the blocks of several for the small gate.
template <class T, class Tile>
__device__ inline unsigned rows_of_blocks(const Task<T>& task, int first, int last) {
  const int thread = thread_here();
  const int blocks = task.blocks(), log_blocks = task.log_blocks();
  unsigned rows = 0;
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int row = Tile::row(i, thread), block = row & (blocks - 1), tile = first + (row >> log_blocks);
    const TilePlace place(task.tiling, tile);
    const bool is =
        tile < last && place.y + task.y_in(block) + 3 < task.x.h && place.x + task.x_in(block) + 3 < task.x.w;
    rows |= unsigned(is) << i;
  }
  return rows;
}

// By words, so that nothing's address is taken.
__device__ inline uint4 pick(bool first, const uint4& a, const uint4& b) {
  return {first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w};
}

// Makes a tile of X, and its rows of A if there is a gate; the small gate's begin at `row`. A warp takes 8 (block,
// group of channels) at a time, each quarter of it one quad of the block: so a quarter accesses 128 bytes of a pixel,
// and a block's mean is made by shuffles.
template <class T, bool kGated>
__device__ inline void pull_tile(const Task<T>& task, const TilePlace& place, int row, T* a, int lda) {
  const int thread = thread_here(), lane = thread % 32, quad = lane / 8, blocks = task.blocks();
  const Divisor groups = task.tiling.groups;
  const int y0 = place.y + quad / 2 * 2, x0 = place.x + quad % 2 * 2, units = groups * blocks;
  for (int first = thread / 32 * 8; first < units; first += kThreads / 4) {
    const int unit = first + lane % 8;
    const bool active = unit < units;
    const int block = active ? unit / groups : 0, channel = active ? (unit - block * groups) * kVector<T> : 0;
    const int y = y0 + task.y_in(block), x = x0 + task.x_in(block);
    uint4 inner = {};  // of the quad's pixels the one in the middle of its block
    if (kGated && task.small && !task.out) {
      const int yi = min(y + 1 - quad / 2, task.x.h - 1), xi = min(x + 1 - quad % 2, task.x.w - 1);
      inner = load_group(task.x.keep + (yi * task.x.w + xi) * task.x.c + channel);
    } else {
      const Quad at(task.x.h, task.x.w, task.x.c, y, x, channel);
      uint4 pixels[4];
      pull(task.x, y, x, channel, at, pixels);
      T* const to = a + (quad * blocks + block) * lda + channel;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (task.out && active && y + i / 2 < task.x.h && x + i % 2 < task.x.w)
          store_global(task.out + at.at(i), pixels[i]);
        if (kGated && !task.small && active) store_group(to + i * 4 * blocks * lda, pixels[i]);
      }
      const uint4 right = pick(quad / 2, pixels[1], pixels[3]), left = pick(quad / 2, pixels[0], pixels[2]);
      inner = pick(quad % 2, left, right);
    }
    if (kGated && task.small) {
      // (top left + top right) + (bottom left + bottom right), of X as it is stored
      float mean[kVector<T>];
      unpack<T>(inner, mean);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) {
        mean[i] += __shfl_xor_sync(~0u, mean[i], 8);
        mean[i] = 0.25f * (mean[i] + __shfl_xor_sync(~0u, mean[i], 16));
      }
      if (active && quad == 0) store_group(a + (row + block) * lda + channel, pack<T>(mean));
    }
  }
}

// All of a task's tiles, and the gate's totals [kWarpRows][n_pad] over them.
template <class T>
__device__ inline void gated_tiles(const Task<T>& task, const Matrix& gate, unsigned char* memory, float*& totals) {
  using Tile = SmallTile<T>;
  constexpr int BN = Tile::BN, BK = Tile::BK, kChunk = Tile::kChunk;
  static_assert(kChunk * sizeof(T) == kAggregateChunk);
  static_assert(Tile::kWarpRows == aggregate_warp_rows(kAggregateType<T>));
  const int lda = row_of_a<Tile>(gate.k_pad), rows_of_a = aggregate_rows_of_a(task.blocks());
  T* const a = reinterpret_cast<T*>(memory);
  float* const shift = reinterpret_cast<float*>(a + rows_of_a * lda);
  totals = shift + gate.n_pad;
  T* const ring = reinterpret_cast<T*>(totals + Tile::kWarpRows * gate.n_pad);
  const int length = ring_length(ring);
  for (int i = threadIdx.x; i < gate.n_pad; i += kThreads) {
    shift[i] = gate.shift[i];
#pragma unroll
    for (int row = 0; row < Tile::kWarpRows; ++row) totals[row * gate.n_pad + i] = 0;
  }
  const int beyond = (gate.k_pad - task.x.c) / kVector<T>;
  if (const int group = threadIdx.x % 8; group < beyond)
    for (int row = threadIdx.x / 8; row < rows_of_a; row += kThreads / 8)
      store_group(a + row * lda + task.x.c + group * kVector<T>, uint4{});

  // all blocks of BN output channels, one after another, pass through the ring as one sequence of chunks
  const int chunks = ceil_div(gate.n_pad, BN) * (gate.k_pad / BK);
  bool fetches = true;
  for (int first = task.begin, last; first < task.end; first = last) {
    last = min(first + task.tiles_of_a(), task.end);
    __syncthreads();  // nobody reads A or the ring any more
    int fetch_n = 0, fetch_k = 0, fetch_slot = 0;
    const auto fetch = [&] {
      // made anew each time: it would be registers that X needs
      if (fetch_n < gate.n_pad) WeightStream<Tile>(gate, fetch_n, fetch_n + BN, fetch_k, BK, ring).fetch(fetch_slot);
      commit_copies();
      if (++fetch_slot == length) fetch_slot = 0;
      if ((fetch_k += BK) == gate.k_pad) fetch_k = 0, fetch_n += BN;
    };
    if (fetches)
#pragma unroll 1
      for (int i = 0; i < length - 1; ++i) fetch();
    for (int tile = first; tile < last; ++tile)
      pull_tile<T, true>(task, TilePlace(task.tiling, tile), (tile - first) * task.blocks(), a, lda);
    const unsigned rows = task.small ? rows_of_blocks<T, Tile>(task, first, last)
                                     : rows_of_tile<T, Tile>(task, TilePlace(task.tiling, first));
    const bool any = __any_sync(~0u, rows);  // else this warp has nothing to multiply

    const PixelRows<Tile> at(a, lda, thread_here());
    for (int n = 0, slot = 0; n < gate.n_pad; n += BN) {
      const int thread = thread_here();
      const bool busy = any && n + Tile::warp_column(thread) < gate.n_pad;
      typename Tile::Accumulators sums;
      begin_with_shift<Tile>(sums, n, gate.n_pad, shift, thread);
#pragma unroll 1
      for (int k = 0; k < gate.k_pad; k += BK) {
        if (fetches || n + k == 0) {  // else all weights are there
          wait_copies(length - 2);
          __syncthreads();
        }
        if (fetches) fetch();
        if (busy) multiply_chunk<Tile>(sums, at, k, ring + slot * kChunk, thread);
        if (++slot == length) slot = 0;
      }
      if (busy) add_columns<Tile>(sums, rows, n, gate.n_pad, totals, thread);
    }
    wait_copies<0>();
    fetches = chunks > length;  // else they stay
  }
}

// A task's sums over the rows of warps, behind `gated_tiles`. The block has to meet before.
template <class T>
__device__ inline void store_partial(const float* totals, int n_pad, float* partial) {
  for (int c = threadIdx.x; c < n_pad; c += kThreads) {
    float sum = 0;
#pragma unroll
    for (int row = 0; row < SmallTile<T>::kWarpRows; ++row) sum += totals[row * n_pad + c];
    partial[c] = sum;
  }
}

}  // namespace dynroute::cuda
