// aggregate: X of a row's present nodes, in the same pass their gates' sums, and at the end the row's routing.
//
// Work: tasks, runs of tiles of 8 x 8 pixels (float: 4 x 8) of one sample and scale; blocks of 4 warps take tasks with
// stride gridDim.x, coarse scales first. Bound by memory. A tile: each thread pulls 2 x 2 pixels x 16 bytes at a time
// (pull.cuh), with up to 17 loads on their way, and stores them to X's map and to A in shared memory. A times the
// gate's 1x1 weights runs on tensor cores (float: on CUDA cores), 64 output channels at a time; ReLU and the sum over
// pixels are done in the accumulators' registers (gate.cuh), nothing of it is stored. The weights' first chunks are on
// their way while X is pulled, and stay for the whole run where all of them fit the ring.
// Small gate: A collects the means of 4x4 blocks, a sixteenth of the pixels, of up to 16 tiles before it is multiplied.
// Read: each source once, `up` 2.25 times, but for its first time from L1; weights once per tile, from L2. Written: X.
// Shared memory: 12 KB of weights, A (64 pixels x (k_pad + 8)), and 3 floats per output channel: 20 KB at C = 64, 81 KB
// at C = 512, hence two blocks per multiprocessor for C = 64 networks.
#include "aggregate.h"
#include "gate.cuh"
#include "route.cuh"
#include "schedule.cuh"

namespace dynroute::cuda {

template <class T>
struct AggregateTile {
  static constexpr DType kType = kIsFloat<T> ? DType::kFloat : DType::kHalf;  // both 16-bit types are alike
  static constexpr int kHeight = aggregate_tile_height(kType), kWidth = kAggregateTileWidth;
  static constexpr int kBlocks = kHeight / 4 * (kWidth / 4);  // of 4x4 pixels, which are pixels of the small gate
  static constexpr int kTilesOfA = Tile<T>::BM / kBlocks;     // small gate
  static_assert(kHeight * kWidth == Tile<T>::BM);
  static_assert(kRing * Tile<T>::kChunk * sizeof(T) == kAggregateRing);
  static_assert(Held<T>::kWarpRows == aggregate_warp_rows(kType));
  static_assert(sizeof(RouteShared) <= kAggregateRoute);
  static_assert((4 * kThreads + 20) * sizeof(float) <= kAggregateRing);
};

// One task's node and place.
template <class T>
struct Task {
  XSources<T> x;
  T* out;  // null: X is not stored
  int tiles_x, begin, end;
  bool small;  // the gate sees X at a quarter of its size

  __device__ int y_of(int tile) const { return tile / tiles_x * AggregateTile<T>::kHeight; }
  __device__ int x_of(int tile) const { return tile % tiles_x * AggregateTile<T>::kWidth; }
  // The gate's pixels in a tile.
  __device__ int gate_pixels(int tile) const {
    using S = AggregateTile<T>;
    const int y = y_of(tile), x_ = x_of(tile);
    return small ? max(min(S::kHeight / 4, x.h / 4 - y / 4), 0) * max(min(S::kWidth / 4, x.w / 4 - x_ / 4), 0)
                 : min(S::kHeight, x.h - y) * min(S::kWidth, x.w - x_);
  }
  // Is row `row` of A, whose first tile is `first`, a pixel of the gate's map?
  __device__ bool is_gate_pixel(int row, int first) const {
    using S = AggregateTile<T>;
    const int block = row % S::kBlocks, quad = row / S::kBlocks % 4, pixel = row / S::kBlocks / 4;
    const int tile = small ? first + row / S::kBlocks : first;
    const int y = y_of(tile) + block / 2 * 4, x_ = x_of(tile) + block % 2 * 4;
    if (small) return tile < end && y / 4 < x.h / 4 && x_ / 4 < x.w / 4;
    return y + quad / 2 * 2 + pixel / 2 < x.h && x_ + quad % 2 * 2 + pixel % 2 < x.w;
  }
};

// By words, so that nothing's address is taken.
__device__ inline uint4 pick(bool first, const uint4& a, const uint4& b) {
  return {first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w};
}

// Makes a tile of X, and its rows of A if there is a gate. A warp takes 8 (block, group of channels) at a time, each of
// its quarters one quad of the block: so a quarter accesses 128 bytes of a pixel, and a block's means are made by
// shuffles.
template <class T, bool kGated>
__device__ inline void pull_tile(const Task<T>& task, int tile, int row, T* a, int lda) {
  using S = AggregateTile<T>;
  const int lane = threadIdx.x % 32, quad = lane / 8, groups = task.x.c / kVector<T>;
  const int y0 = task.y_of(tile) + quad / 2 * 2, x0 = task.x_of(tile) + quad % 2 * 2;
  for (int unit = threadIdx.x / 32 * 8 + lane % 8; unit - lane % 8 < groups * S::kBlocks; unit += kThreads / 4) {
    const bool active = unit < groups * S::kBlocks;
    const int block = active ? unit / groups : 0, channel = active ? unit % groups * kVector<T> : 0;
    const int y = y0 + block / 2 * 4, x = x0 + block % 2 * 4;
    uint4 pixels[4];
    pull(task.x, y, x, channel, pixels);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int yi = y + i / 2, xi = x + i % 2;
      if (task.out && active && yi < task.x.h && xi < task.x.w)
        store_group(task.out + (yi * task.x.w + xi) * task.x.c + channel, pixels[i]);
      if (kGated && !task.small && active)
        store_group(a + ((i * 4 + quad) * S::kBlocks + block) * lda + channel, pixels[i]);
    }
    if (kGated && task.small) {
      // the inner pixel of each quad, (top left + top right) + (bottom left + bottom right)
      const uint4 right = pick(quad / 2, pixels[1], pixels[3]), left = pick(quad / 2, pixels[0], pixels[2]);
      float mean[kVector<T>];
      unpack<T>(pick(quad % 2, left, right), mean);
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
  using S = AggregateTile<T>;
  constexpr int BN = Tile<T>::BN, BK = Tile<T>::BK, kChunk = Tile<T>::kChunk;
  const int lda = row_of_a<T>(gate.k_pad), beyond = (gate.k_pad - task.x.c) / kVector<T>;
  T* ring = reinterpret_cast<T*>(memory);
  T* a = reinterpret_cast<T*>(memory + kAggregateRing);
  float* shift = reinterpret_cast<float*>(memory + kAggregateRing + bytes_of_a<T>(gate.k_pad));
  totals = shift + gate.n_pad;
  for (int i = threadIdx.x; i < gate.n_pad; i += kThreads) {
    shift[i] = gate.shift[i];
#pragma unroll
    for (int row = 0; row < Held<T>::kWarpRows; ++row) totals[row * gate.n_pad + i] = 0;
  }
  for (int i = threadIdx.x; i < Tile<T>::BM * beyond; i += kThreads)
    store_group(a + i / beyond * lda + task.x.c + i % beyond * kVector<T>, uint4{});

  // all blocks of BN output channels, one after another, pass through the ring as one sequence of chunks
  const int per_block = gate.k_pad / BK, chunks = (gate.n_pad + BN - 1) / BN * per_block;
  const auto fetch = [&](int chunk) {
    if (chunk < chunks)
      fetch_chunk<T, BN>(ring + chunk % kRing * kChunk, gate, chunk / per_block * BN, chunk % per_block * BK);
    commit_copies();
  };
  const auto at = [=](int row, int k) { return a + row * lda + k; };
  const int step = task.small ? S::kTilesOfA : 1;
  int pixels = 0;
  for (int first = task.begin; first < task.end; first += step) {
    __syncthreads();  // nobody reads A or the ring any more
    if (chunks > kRing || first == task.begin) fetch(0), fetch(1);
    int here = 0;
    for (int tile = first; tile < min(first + step, task.end); ++tile) {
      pull_tile<T, true>(task, tile, (tile - first) * S::kBlocks, a, lda);
      here += task.gate_pixels(tile);
    }
    unsigned rows = 0;
#pragma unroll
    for (int i = 0; i < Held<T>::kRows; ++i) rows |= unsigned(task.is_gate_pixel(Held<T>::row(i), first)) << i;
    pixels += here;
    typename Tile<T>::Accumulators sums;
    clear<T>(sums);
    for (int chunk = 0, k = 0; chunk < chunks; ++chunk) {
      wait_copies<kRing - 2>();
      __syncthreads();
      if (chunks > kRing || first == task.begin) fetch(chunk + 2);
      multiply_chunk<T, BN>(sums, at, k, ring + chunk % kRing * kChunk);
      k += BK;
      if (k < gate.k_pad) continue;
      add_columns<T>(sums, rows, chunk / per_block * BN, gate.n_pad, shift, totals);
      clear<T>(sums);
      k = 0;
    }
    wait_copies<0>();
  }
  return pixels;
}

template <class T>
__device__ inline void aggregate(const AggregateParams& p) {
  using S = AggregateTile<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const bool forced = p.io->gates;
  int tasks[kScales];
#pragma unroll
  for (int s = 0; s < kScales; ++s)
    tasks[s] = aggregate_tiling(p.level[s].h, p.level[s].w, p.level[s].c, S::kType).tasks;

  Work work;
  for (int at = blockIdx.x; find_work(p.row, kPresent, tasks, p.n, at, work); at += gridDim.x) {
    const int s = work.scale;
    const Level level = p.level[s];
    const Matrix gate = p.gate[s];
    const Node node = p.row.nodes[work.sample * kScales + s];
    const bool gated = gate.weight && !forced;
    if (node.aliased && !gated) continue;
    const int64_t size = int64_t(level.h) * level.w * level.c, sample = work.sample;
    T* const x = static_cast<T*>(node.x_map ? level.map[1] : level.map[0]) + sample * size;
    const T* const keep = static_cast<const T*>(node.x_map ? level.map[0] : level.map[1]) + sample * size;
    Task<T> task = {};
    task.x = {nullptr,          node.aliased ? x : keep, nullptr, node.source_down,
              node.source_keep, node.source_up,          level.h, level.w,
              level.c};
    // neighbours' halves: [h, w, c/2] for this scale of `up`, behind it [h/2, w/2, 2c]
    if (node.source_down != 0) {
      const Level& from = p.level[s - 1];
      const int64_t of_from = int64_t(from.h) * from.w * from.c;
      task.x.down = static_cast<const T*>(from.halves) + sample * of_from + of_from / 2;
    }
    if (node.source_up != 0) {
      const Level& from = p.level[s + 1];
      task.x.up = static_cast<const T*>(from.halves) + sample * (int64_t(from.h) * from.w * from.c);
    }
    task.out = node.aliased ? nullptr : x;
    task.small = p.small_gate;
    const AggregateTiling tiling = aggregate_tiling(level.h, level.w, level.c, S::kType);
    task.tiles_x = tiling.tiles_x;
    task.begin = work.tile * tiling.run;
    task.end = min(task.begin + tiling.run, tiling.tiles);
    if (!gated) {
      for (int tile = task.begin; tile < task.end; ++tile) pull_tile<T, false>(task, tile, 0, nullptr, 0);
      continue;
    }

    float* totals;
    const int pixels = gated_tiles<T>(task, gate, memory, totals);
    __syncthreads();
    float* partial = p.partials[s] + (sample * tiling.tasks + work.tile) * gate.n_pad;
    for (int c = threadIdx.x; c < gate.n_pad; c += kThreads) {
      float sum = 0;
#pragma unroll
      for (int row = 0; row < Held<T>::kWarpRows; ++row) sum += totals[row * gate.n_pad + c];
      partial[c] = sum;
    }
    if (threadIdx.x == 0)
      count(p.io->nodes + ((sample * p.rows + p.row_index) * kScales + s) * 5, int64_t(pixels) * gate.k * gate.n);
    int* const last = reinterpret_cast<int*>(memory);
    if (arrive_last(p.node_arrivals + work.sample * kScales + s, tiling.tasks, last)) {
      const int divide = p.small_gate ? 4 : 1;
      finish_gate(p, *p.io, s, work.sample, tiling.tasks, float(level.h / divide) * float(level.w / divide),
                  reinterpret_cast<float*>(memory) + 4);
    }
    __syncthreads();
  }
  RouteShared& shared = *reinterpret_cast<RouteShared*>(memory);
  if (arrive_last(p.row_arrivals, gridDim.x, &shared.last)) route(p, shared);
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(aggregate, AggregateParams, kThreads, kAggregateBlocks)
