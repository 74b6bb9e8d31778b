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
  AggregateTiling tiling;
  int begin, end;  // tiles
  bool small;      // the gate sees X at a quarter of its size

  __device__ int blocks() const { return tiling.blocks_y * tiling.blocks_x; }
  __device__ int y_of(int tile) const { return tile / tiling.tiles_x * tiling.blocks_y * 4; }
  __device__ int x_of(int tile) const { return tile % tiling.tiles_x * tiling.blocks_x * 4; }
  __device__ int y_in(int block) const { return (tiling.blocks_y == 2 ? block / 2 : 0) * 4; }
  __device__ int x_in(int block) const { return (tiling.blocks_x == 2 ? block % 2 : 0) * 4; }

  // The gate's pixels in a tile, and the tiles of which A holds them.
  __device__ int gate_pixels(int tile) const {
    const int y = y_of(tile), x0 = x_of(tile), height = 4 * tiling.blocks_y, width = 4 * tiling.blocks_x;
    if (small) return max(min(height, x.h - y) / 4, 0) * max(min(width, x.w - x0) / 4, 0);
    return min(height, x.h - y) * min(width, x.w - x0);
  }
  __device__ int tiles_of_a() const { return small ? aggregate_rows_of_a(blocks()) / blocks() : 1; }
  // Is row `row` of A, which holds tiles from `first` to `last`, a pixel of the gate's map?
  __device__ bool is_gate_pixel(int row, int first, int last) const {
    const int block = row % blocks(), in_block = row / blocks(), quad = in_block % 4, pixel = in_block / 4;
    const int tile = small ? first + in_block : first;
    const int y = y_of(tile) + y_in(block), x0 = x_of(tile) + x_in(block);
    if (small) return tile < last && y + 3 < x.h && x0 + 3 < x.w;
    return pixel < 4 && y + quad / 2 * 2 + pixel / 2 < x.h && x0 + quad % 2 * 2 + pixel % 2 < x.w;
  }
};

// By words, so that nothing's address is taken.
__device__ inline uint4 pick(bool first, const uint4& a, const uint4& b) {
  return {first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w};
}

// Makes a tile of X, and its rows of A if there is a gate; the small gate's begin at `row`. A warp takes 8 (block,
// group of channels) at a time, each quarter of it one quad of the block: so a quarter accesses 128 bytes of a pixel,
// and a block's mean is made by shuffles.
template <class T, bool kGated>
__device__ inline void pull_tile(const Task<T>& task, int tile, int row, T* a, int lda) {
  const int lane = threadIdx.x % 32, quad = lane / 8, groups = task.x.c / kVector<T>, blocks = task.blocks();
  const int y0 = task.y_of(tile) + quad / 2 * 2, x0 = task.x_of(tile) + quad % 2 * 2;
  for (int first = threadIdx.x / 32 * 8; first < groups * blocks; first += kThreads / 4) {
    const int unit = first + lane % 8;
    const bool active = unit < groups * blocks;
    const int block = active ? unit / groups : 0, channel = active ? unit % groups * kVector<T> : 0;
    const int y = y0 + task.y_in(block), x = x0 + task.x_in(block);
    uint4 inner = {};  // of the quad's pixels the one in the middle of its block
    if (kGated && task.small && !task.out) {
      const int yi = min(y + 1 - quad / 2, task.x.h - 1), xi = min(x + 1 - quad % 2, task.x.w - 1);
      inner = load_group(task.x.keep + (yi * task.x.w + xi) * task.x.c + channel);
    } else {
      uint4 pixels[4];
      pull(task.x, y, x, channel, pixels);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int yi = y + i / 2, xi = x + i % 2;
        if (task.out && active && yi < task.x.h && xi < task.x.w)
          store_global(task.out + (yi * task.x.w + xi) * task.x.c + channel, pixels[i]);
        if (kGated && !task.small && active)
          store_group(a + ((i * 4 + quad) * blocks + block) * lda + channel, pixels[i]);
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

// All of a task's tiles, and the gate's totals [kWarpRows][n_pad] over them. Returns the number of its pixels.
template <class T>
__device__ inline int gated_tiles(const Task<T>& task, const Matrix& gate, unsigned char* memory, float*& totals) {
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
  for (int i = threadIdx.x; i < rows_of_a * beyond; i += kThreads)
    store_group(a + i / beyond * lda + task.x.c + i % beyond * kVector<T>, uint4{});

  // all blocks of BN output channels, one after another, pass through the ring as one sequence of chunks
  const int chunks = ceil_div(gate.n_pad, BN) * (gate.k_pad / BK);
  const bool stay = chunks <= length;
  int pixels = 0;
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
    const bool fetches = !stay || first == task.begin;
    if (fetches)
      for (int i = 0; i < length - 1; ++i) fetch();
    for (int tile = first; tile < last; ++tile) {
      pull_tile<T, true>(task, tile, (tile - first) * task.blocks(), a, lda);
      pixels += task.gate_pixels(tile);
    }
    unsigned rows = 0;
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) rows |= unsigned(task.is_gate_pixel(Tile::row(i), first, last)) << i;
    const bool any = __any_sync(~0u, rows);  // else this warp has nothing to multiply

    typename Tile::Accumulators sums;
    clear(sums);
    const PixelRows<Tile> at(a, lda, thread_here());
    for (int n = 0, k = 0, slot = 0; n < gate.n_pad;) {
      wait_copies(length - 2);
      __syncthreads();
      if (fetches) fetch();
      const bool busy = any && n + Tile::warp_column() < gate.n_pad;
      if (busy) multiply_chunk<Tile>(sums, at, k, ring + slot * kChunk);
      if (++slot == length) slot = 0;
      if ((k += BK) < gate.k_pad) continue;
      if (busy) add_columns<Tile>(sums, rows, n, gate.n_pad, shift, totals);
      clear(sums);
      k = 0, n += BN;
    }
    wait_copies<0>();
  }
  return pixels;
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
