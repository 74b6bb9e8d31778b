// A task of the gate: X of a run of tiles, and the gate's sums over it (aggregate_route.cu says how), for the kernels
// that walk over such tasks.
#pragma once
#include "gate.cuh"

namespace dynroute::cuda {

template <class T>
constexpr DType kAggregateType = kIsFloat<T> ? DType::kFloat : DType::kHalf;  // both 16-bit types are alike

// One task's node and place.
template <class T>
struct Task {
  XSources<T> x;
  T* out;          // null: X is not stored
  int begin, end;  // tiles
  bool gated;      // else X is all that is wanted
  bool small;      // the gate sees X at a quarter of its size
};

// A tile's blocks of 4x4 pixels. Tiles, blocks, their 2 x 2 quads, and a quad's 2 x 2 pixels are all counted row by
// row. A's row of a pixel is ((pixel * 4) + quad) * blocks + block; the small gate's of a block is tile * blocks +
// block: rows that are written together lie in different banks.
struct TileBlocks {
  int high, wide;
  __device__ explicit TileBlocks(const AggregateTiling& tiling) : high(tiling.blocks_y), wide(tiling.blocks_x) {}
  __device__ int count() const { return high * wide; }          // 1, 2 or 4
  __device__ int log() const { return unsigned(count()) / 2; }  // to the base 2
  __device__ int y_in(int block) const { return (high == 2 ? block / 2 : 0) * 4; }
  __device__ int x_in(int block) const { return (wide == 2 ? block % 2 : 0) * 4; }
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
__device__ inline unsigned rows_of_tile(const Task<T>& task, const AggregateTiling& tiling, int tile) {
  const int thread = thread_here();
  const TileBlocks blocks(tiling);
  if (Tile::row(0, thread) >= 16 * blocks.count()) return 0;  // as all rows of this warp
  unsigned rows = (1u << Tile::kRows) - 1;
  if (tiling.whole) return rows;
  const TilePlace place(tiling, tile);
  if (place.y + 4 * blocks.high <= task.x.h && place.x + 4 * blocks.wide <= task.x.w) return rows;
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int row = Tile::row(i, thread), block = row & (blocks.count() - 1), in_block = row >> blocks.log();
    const int y = place.y + blocks.y_in(block) + in_block % 4 / 2 * 2 + in_block / 4 / 2;
    const int x = place.x + blocks.x_in(block) + in_block % 2 * 2 + in_block / 4 % 2;
    if (y >= task.x.h || x >= task.x.w) rows &= ~(1u << i);
  }
  return rows;
}
// or the blocks of several for the small gate.
template <class T, class Tile>
__device__ inline unsigned rows_of_blocks(const Task<T>& task, const AggregateTiling& tiling, int first, int last) {
  const int thread = thread_here();
  const TileBlocks blocks(tiling);
  unsigned rows = 0;
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int row = Tile::row(i, thread), block = row & (blocks.count() - 1), tile = first + (row >> blocks.log());
    const TilePlace place(tiling, tile);
    const bool is =
        tile < last && place.y + blocks.y_in(block) + 3 < task.x.h && place.x + blocks.x_in(block) + 3 < task.x.w;
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
template <class T>
__device__ inline void pull_tile(const Task<T>& task, const AggregateTiling& tiling, int tile, int row, T* a, int lda) {
  const int thread = thread_here(), lane = thread % 32, quad = lane / 8;
  const TileBlocks blocks(tiling);
  const Divisor groups = tiling.groups;
  const int units = groups * blocks.count();
  int first = thread / 32 * 8;
  if (first >= units) return;
  const XSources<T> source = task.x;
  T* const out = task.out;
  const bool seen = task.gated && !task.small, averaged = task.gated && task.small;  // by the gate
  const TilePlace place(tiling, tile);
  const int y0 = place.y + quad / 2 * 2, x0 = place.x + quad % 2 * 2;
#pragma unroll 1
  for (; first < units; first += kThreads / 4) {
    const int unit = first + lane % 8;
    const bool active = unit < units;
    const int block = active ? unit / groups : 0, channel = active ? (unit - block * groups) * kVector<T> : 0;
    const int y = y0 + blocks.y_in(block), x = x0 + blocks.x_in(block);
    uint4 inner = {};  // of the quad's pixels the one in the middle of its block
    if (averaged && !out) {
      const int yi = min(y + 1 - quad / 2, source.h - 1), xi = min(x + 1 - quad % 2, source.w - 1);
      inner = load_group(source.keep + (yi * source.w + xi) * source.c + channel);
    } else {
      const Quad at(source.h, source.w, source.c, y, x, channel);
      uint4 pixels[4];
      pull(source, y, x, channel, at, pixels);
      T* const to = a + (quad * blocks.count() + block) * lda + channel;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (out && active && y + i / 2 < source.h && x + i % 2 < source.w) store_global(out + at.at(i), pixels[i]);
        if (seen && active) store_group(to + i * 4 * blocks.count() * lda, pixels[i]);
      }
      const uint4 right = pick(quad / 2, pixels[1], pixels[3]), left = pick(quad / 2, pixels[0], pixels[2]);
      inner = pick(quad % 2, left, right);
    }
    if (averaged) {
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

// Where a task's data lies in shared memory.
template <class T>
struct GateMemory {
  T* a;
  int lda;
  float *shift, *totals;
  T* ring;

  __device__ GateMemory(const Matrix& gate, const AggregateTiling& tiling, unsigned char* memory)
      : a(reinterpret_cast<T*>(memory)),
        lda(row_of_a<SmallTile<T>>(gate.k_pad)),
        shift(reinterpret_cast<float*>(memory + tiling.shift)),
        totals(reinterpret_cast<float*>(memory + tiling.totals)),
        ring(reinterpret_cast<T*>(memory + tiling.ring)) {}
};

// Calls f with an object of the type of the product's tile, that of which a task leaves least unused: 16 to 64 rows by
// 32 or 64 columns. Where a tile has fewer than 64 rows for 16-bit types, its warps have 16 of them each, so that all
// four are busy at 32.
template <class T, class F>
__device__ inline void with_gate_tile(const AggregateTiling& tiling, bool small, const F& f) {
  const int blocks = TileBlocks(tiling).count();
  const bool narrow = tiling.width == 32;
  if constexpr (kIsFloat<T>) {
    if (blocks == 1 && !small) return narrow ? f(GemmTile<T, 16, 32>()) : f(GemmTile<T, 16, 64>());
    return narrow ? f(GemmTile<T, 32, 32>()) : f(GemmTile<T, 32, 64>());
  } else {
    if (blocks < 4) return f(GemmTile<T, 32, 64>());
    return narrow ? f(GemmTile<T, 64, 32>()) : f(GemmTile<T, 64, 64>());
  }
}

// What the gate needs before the first tile.
template <class T>
__device__ inline void begin_gate(const Matrix& gate, const AggregateTiling& tiling, int channels,
                                  const GateMemory<T>& at) {
#pragma unroll 1
  for (int i = 4 * threadIdx.x; i < gate.n_pad; i += 4 * kThreads) copy_async(at.shift + i, gate.shift + i, true);
  const int totals = tiling.ring - tiling.totals;  // bytes
#pragma unroll 1
  for (int i = 16 * threadIdx.x; i < totals; i += 16 * kThreads)
    *reinterpret_cast<float4*>(reinterpret_cast<unsigned char*>(at.totals) + i) = float4{};
  const int beyond = unsigned(gate.k_pad - channels) / kVector<T>;
  if (const int group = threadIdx.x % 8; group < beyond)
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < aggregate_rows_of_a(TileBlocks(tiling).count()); row += kThreads / 8)
      store_group(at.a + row * at.lda + channels + group * kVector<T>, uint4{});
}

// The first weights, on their way. All blocks of output channels, one after another, pass through the ring as one
// sequence of chunks.
template <class T>
__device__ inline void begin_weights(const Matrix& gate, const AggregateTiling& tiling, T* ring) {
  __builtin_assume(gate.n_pad > 0 && gate.k_pad > 0);
  const auto begin = [&](auto tile) {
    WeightStream<decltype(tile)> stream(gate, 0, gate.n_pad, 0, gate.k_pad, ring, thread_here());
    begin_ring(stream, tiling.ahead);
  };
  if (tiling.width == 32) begin(SmallTile<T, 32>());  // whose number of rows does not matter here
  else begin(SmallTile<T, 64>());
}

// Adds to totals what A, which holds the tiles from `first` to `last`, comes to. Called by the whole block, behind
// begin_weights; the barrier behind which A and the first weights are there is here.
template <class Tile, class T = typename Tile::T>
__device__ inline void add_product(const Task<T>& task, int first, int last, const Matrix& gate,
                                   const AggregateTiling& tiling, const GateMemory<T>& memory) {
  const int thread = thread_here(), ahead = tiling.ahead;
  const bool stays = tiling.stays;
  wait_copies(stays ? 0 : ahead - 1);
  __syncthreads();
  const unsigned rows =
      task.small ? rows_of_blocks<T, Tile>(task, tiling, first, last) : rows_of_tile<T, Tile>(task, tiling, first);
  // of this warp, from its first on; without a row there is nothing to multiply
  const int columns = __any_sync(~0u, rows) ? gate.n_pad - Tile::warp_column(thread) : 0;
  const PixelRows<Tile> at(memory.a, memory.lda, thread);
  int slot = 0;
  // the columns from n on; next(): before each chunk
  const auto multiply = [&](int n, const auto& next) {
    typename Tile::Accumulators sums;
    begin_with_shift<Tile>(sums, memory.shift + n, thread);
#pragma unroll 1
    for (int k = 0; k < gate.k_pad; k += Tile::BK) {
      next();
      multiply_chunk<Tile>(sums, at, k, memory.ring + slot * Tile::kChunk, thread);
      slot = slot == ahead ? 0 : slot + 1;
    }
    add_columns<Tile>(sums, rows, memory.totals + n, gate.n_pad, thread);
  };
  if (stays) {
#pragma unroll 1
    for (int n = 0; n < columns; n += Tile::BN) multiply(n, [] {});
    return;
  }
  __builtin_assume(gate.n_pad > 0 && gate.k_pad > 0);
  WeightStream<Tile> stream(gate, 0, gate.n_pad, 0, gate.k_pad, memory.ring, thread);
#pragma unroll 1
  for (int i = 0; i < ahead; ++i) stream.skip();
  const auto next = [&] {
    wait_copies(ahead - 1);
    __syncthreads();
    stream.fetch(slot == 0 ? ahead : slot - 1);
    commit_copies();
  };
#pragma unroll 1
  for (int n = 0; n < gate.n_pad; n += Tile::BN) {
    if (n < columns) {
      multiply(n, next);
      continue;
    }
#pragma unroll 1
    for (int k = 0; k < gate.k_pad; k += Tile::BK) next(), slot = slot == ahead ? 0 : slot + 1;
  }
}

// All of a task's tiles, and the gate's totals [gate_warp_rows][n_pad] over them. `of` says what of, when it is asked,
// so that nothing of it has to be kept in registers: gate() the Matrix, tiling().
template <class T, class Of>
__device__ inline void do_task(const Task<T>& task, const Of& of, unsigned char* memory) {
  if (task.gated) begin_gate<T>(of.gate(), of.tiling(), task.x.c, GateMemory<T>(of.gate(), of.tiling(), memory));
  int row = 0;  // of A, where the next tile's begin
#pragma unroll 1
  for (int tile = task.begin; tile < task.end; ++tile) {
    if (task.gated && row == 0 && (tile == task.begin || !of.tiling().stays))
      begin_weights(of.gate(), of.tiling(), GateMemory<T>(of.gate(), of.tiling(), memory).ring);
    pull_tile<T>(task, of.tiling(), tile, row, reinterpret_cast<T*>(memory), row_of_a<SmallTile<T>>(of.gate().k_pad));
    if (!task.gated) continue;
    const TileBlocks blocks(of.tiling());
    row += blocks.count();
    if (task.small && row < aggregate_rows_of_a(blocks.count()) && tile + 1 < task.end) continue;
    with_gate_tile<T>(of.tiling(), task.small, [&](auto product) {
      const Matrix& gate = of.gate();
      const AggregateTiling& tiling = of.tiling();
      const int first = tile + 1 - (row >> TileBlocks(tiling).log());
      add_product<decltype(product)>(task, first, tile + 1, gate, tiling, GateMemory<T>(gate, tiling, memory));
    });
    __syncthreads();  // nobody reads A or the ring any more
    row = 0;
  }
  wait_copies<0>();
}

// A task's sums over the rows of warps, behind `do_task`, to of.partials()[number].
template <class T, class Of>
__device__ inline void store_partial(const Of& of, int number, unsigned char* memory) {
  const AggregateTiling& tiling = of.tiling();
  const float* totals = reinterpret_cast<const float*>(memory + tiling.totals);
  const int n_pad = of.gate().n_pad;
#pragma unroll 1
  for (int c = threadIdx.x; c < n_pad; c += kThreads) {
    float sum = totals[c];
#pragma unroll 1
    for (int row = 1; row < gate_warp_rows(kAggregateType<T>, tiling.width); ++row) sum += totals[row * n_pad + c];
    of.partials()[number * n_pad + c] = sum;
  }
}

}  // namespace dynroute::cuda
