// A work item of the outgoing paths of open nodes: up, C -> C/2 at stride 1, and down, C -> 2C at the even pixels. The
// input lies ReLU'd in map[out_map]; results go, ReLU'd and not yet weighted, to the scale's halves, where the next
// row's aggregate pulls them.
//
// An item is 64 pixels x 128 output channels or several such blocks, on 256 threads; 128 x 64 where there are no 128
// channels (float: 64 x 64). Fine scales have tiles enough and an item does all output channels of its pixels; coarse
// scales have few tiles and wide outputs, which go to different blocks.
// Memory: each item reads its pixels once, of a down path's map only the quarter it needs: 16 bytes a thread and 128
// contiguous bytes of a pixel per 8 threads. Weights stream from L2 through a ring of three chunks. Shared memory: 24
// KB for the ring, and all of a pixel's channels: 67 KB at 512 (float: a slice of 256).
#pragma once
#include "pointwise.cuh"
#include "stage_paths.h"

namespace dynroute::cuda {

template <class T, int Width>
using PathTile = GemmTile<T, path_tile({nullptr, nullptr, 0, 0, 0, Width}, kIsFloat<T>).pixels, Width, kSepconvThreads>;

// Of a row's paths, in shared memory: what would take loads to know again for each item.
struct PathList {
  int all[2][kScales];  // items of all samples: up, down
  int waits[kScales];   // a node's stage items, for which its paths wait; 0: none
  int stages[kScales];  // of all samples
};

// What an item is, found by one thread: in registers of all threads it would cost the product spills.
struct PathItem {
  int found, down, scale, map;  // two booleans; and which map H lies in
  int first_pixel, pixels;      // of the output
  int begin, end;               // output channels
  int node, waits;              // whose stage it waits for, and how many items of it
  int64_t sample_at, counter;   // where the sample's values begin in its scale's buffers; which count of io->node_macs
};

// Item number `at` of all paths: those that need not wait come first; of either kind coarse scales, whose stages come
// first as well.
template <class T>
__device__ inline void find_path_item(const StagePathsParams& params, const PathList& list, int at, PathItem& item) {
  item.found = false;
#pragma unroll 1
  for (int i = 0; i < 4 * kScales; ++i) {
    const int scale = kScales - 1 - i / 2 % kScales, down = i % 2;
    if ((list.waits[scale] > 0) != (i >= 2 * kScales)) continue;
    const int here = list.all[down][scale];
    if (at >= here) {
      at -= here;
      continue;
    }
    const int of_sample = params.cuts[down][scale].of_sample, which = (down ? kDownOpen : kUpOpen) * kScales + scale;
    const int sample = params.cells.row.samples[which * params.cells.n + at / of_sample], number = at % of_sample;
    const ScaleMaps& maps = params.cells.maps[scale];
    const Matrix& w = down ? params.down[scale] : params.up[scale];
    item.found = true, item.down = down, item.scale = scale;
    item.node = sample * kScales + scale, item.waits = list.waits[scale];
    item.map = params.cells.row.nodes[item.node].out_map;

    const PointwiseTile tile = path_tile(w, kIsFloat<T>);
    const Cut& part = params.cuts[down][scale].part;
    item.first_pixel = number / part.parts * tile.pixels;
    item.pixels = min(tile.pixels, path_pixels(maps.shape, down) - item.first_pixel);
    item.begin = number % part.parts * part.channels;
    item.end = min(item.begin + part.channels, w.n);

    item.sample_at = maps.shape.size() * sample;
    item.counter = node_index(sample, params.cells.rows, params.cells.row_index, scale) * kNodeParts +
                   part_of_path(down ? kDown : kUp);
    return;
  }
}

// One item, by the whole block. `ahead` is called by one thread while the pixels are on their way.
template <class Tile, class Ahead>
__device__ inline void path_item(const StagePathsParams& params, const PathItem& item, const Matrix& w, void* memory,
                                 Ahead&& ahead) {
  using T = typename Tile::T;
  constexpr PointwiseTile tile = path_tile({nullptr, nullptr, 0, 0, 0, Tile::BN}, Tile::kCores);
  static_assert(Tile::BM == tile.pixels && Tile::BN == tile.width, "the host has the same tile in mind");
  static_assert(bytes_of_a<Tile>(64) == path_a_bytes({nullptr, nullptr, 64, 0, 64, Tile::BN}, Tile::kCores),
                "and its memory");
  const ScaleMaps& maps = params.cells.maps[item.scale];
  // Within, copies of the item's fields: asynchronous copies are memory to the compiler, and would have it read again.
  const auto fill = [&](T* a, int lda, int k, int count) {
    const T* const x = static_cast<const T*>(maps.map[item.map]) + item.sample_at + k;
    const int c = maps.shape.c, w_in = maps.shape.w, pixels = item.pixels, first = item.first_pixel;
    const Divisor w_out = params.half_w[item.scale];
    const bool down = item.down;
    constexpr int kStep = Tile::kBlock / 8, kPixels = Tile::BM / kStep;  // from one pixel of a thread to the next
    int from[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = first + threadIdx.x / 8 + i * kStep, line = pixel / w_out;
      from[i] = (down ? 2 * (line * (w_in - w_out) + pixel) : pixel) * c;
    }
    const unsigned to = shared_address(a + threadIdx.x / 8 * lda);
#pragma unroll 1
    for (int at = threadIdx.x % 8 * kVector<T>; at < count; at += 8 * kVector<T>)  // 128 bytes of a pixel at a time
#pragma unroll
      for (int i = 0; i < kPixels; ++i)
        copy_async(to + (i * kStep * lda + at) * unsigned(sizeof(T)), x + from[i] + at,
                   int(threadIdx.x / 8) + i * kStep < pixels && k + at < c);
    commit_copies();
    if (k == 0 && threadIdx.x == 0) ahead();
  };
  T* const out = static_cast<T*>(maps.halves) + item.sample_at + in_halves(item.down ? kDown : kUp, maps.shape.size());
  const int first = item.first_pixel, pixels = item.pixels;
  const auto destination = [&](int row) { return row < pixels ? out + int64_t(first + row) * w.n : nullptr; };
  pointwise_item<Tile>(w, tile.slice, item.begin, item.end, memory, kLeastAhead, fill, destination);
  if (threadIdx.x == 0)
    count(params.cells.io->node_macs + item.counter, int64_t(pixels) * maps.shape.c * (item.end - item.begin));
}

}  // namespace dynroute::cuda
