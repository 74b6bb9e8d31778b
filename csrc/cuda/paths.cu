// The outgoing paths of a row's open nodes, all scales and both directions in one launch: up, C -> C/2 at stride 1, and
// down, C -> 2C at the even pixels. The input lies ReLU'd in map[out_map]; results go, ReLU'd and not yet weighted, to
// the scale's halves, where the next row's aggregate pulls them.
//
// Work: an item is 64 pixels x 64 output channels or several such blocks, on 128 threads as 2 x 2 warps; 128 x 32 where
// channels are no multiple of 64, 64 x 32 in float (pointwise.h). Fine scales have tiles enough and an item does all
// output channels of its pixels; coarse scales have few tiles and wide outputs, which go to different blocks. Up comes
// before down and coarse before fine: the longest items first, the shortest last. Blocks stay and take every
// gridDim.x-th item.
// Memory: each item reads its pixels once, of a down path's map only the quarter it needs: 16 bytes a thread and 128
// contiguous bytes of a pixel per 8 threads. Weights stream from L2 through a ring of three chunks. Shared memory: 20
// KB for ring and results and up to 17 for the pixels (float: 10 and 33). At most 96 registers: five blocks per
// multiprocessor on H100, four on A100 (float: three), two on sm_86.
#include "paths.h"
#include "pointwise.cuh"
#include "schedule.cuh"

namespace dynroute::cuda {

// What an item is, found by one thread: in registers of all threads it would cost the product spills. There are two, so
// that the next one can be written while slower threads are still busy with the last.
struct PathItem {
  int found, down, scale, map;  // booleans; and which map H lies in
  int first_pixel, pixels;      // of the output
  int begin, end;               // output channels
  int64_t sample_at, counter;   // where the sample's values begin in its scale's buffers; which count of io->nodes
};

// Items of one sample: up, down.
using PathItems = int[2][kScales];

template <class T>
__device__ inline void find_path_item(const PathsParams& params, const PathItems& items, int at, PathItem& item) {
  Work work;
  bool down = false;
  item.found = find_work(params.row, kUpOpen, items[0], params.n, at, work);
  if (!item.found) {
    for (int s = 0; s < kScales; ++s) at -= items[0][s] * params.row.counts[kUpOpen * kScales + s];
    down = true;
    item.found = find_work(params.row, kDownOpen, items[1], params.n, at, work);
    if (!item.found) return;
  }
  const Level& level = params.level[work.scale];
  const Matrix& w = down ? params.down[work.scale] : params.up[work.scale];
  item.down = down, item.scale = work.scale;
  item.map = params.row.nodes[work.sample * kScales + work.scale].out_map;

  const PointwiseTile tile = pointwise_tile(w, kIsFloat<T>);
  const int pixels = path_pixels(level, down);
  const Cut part = cut(w, tile, ceil_of(pixels, tile.pixels));
  item.first_pixel = work.tile / part.parts * tile.pixels;
  item.pixels = min(tile.pixels, pixels - item.first_pixel);
  item.begin = work.tile % part.parts * part.channels;
  item.end = min(item.begin + part.channels, w.n);

  item.sample_at = int64_t(level.h) * level.w * level.c * work.sample;
  item.counter = ((int64_t(work.sample) * params.rows + params.row_index) * kScales + work.scale) * 5 + (down ? 4 : 2);
}

template <class T, int Width>
__device__ inline void path_item(const PathsParams& params, const PathItem& item, const Matrix& w, void* memory) {
  const Level& level = params.level[item.scale];
  // Within, copies of the item's fields: asynchronous copies are memory to the compiler, and would have it read again.
  const auto fill = [&](T* a, int lda, int k, int count) {
    const T* const x = static_cast<const T*>(level.map[item.map]) + item.sample_at;
    const int c = level.c, w_in = level.w, pixels = item.pixels, first = item.first_pixel;
    const bool down = item.down;
    for (int row = threadIdx.x / 8; row < Tile<T, Width>::BM; row += kThreads / 8) {
      const int pixel = first + row, w_out = w_in / 2;
      const int from = (down ? (pixel / w_out * w_in + pixel % w_out) * 2 : pixel) * c + k;
      for (int i = threadIdx.x % 8 * kVector<T>; i < count; i += 8 * kVector<T>) {  // 128 bytes of a pixel at a time
        const bool valid = row < pixels && k + i < c;
        copy_async(a + row * lda + i, x + (valid ? from + i : 0), valid);
      }
    }
    commit_copies();
  };
  const int64_t size = int64_t(level.h) * level.w * level.c;
  T* const out = static_cast<T*>(level.halves) + item.sample_at + (item.down ? size / 2 : 0);
  const int first = item.first_pixel, pixels = item.pixels;
  const auto destination = [&](int row) { return row < pixels ? out + int64_t(first + row) * w.n : nullptr; };
  pointwise_item<T, Width>(w, tile_of<T, Width>.slice, item.begin, item.end, memory, fill, destination);
  if (threadIdx.x == 0) count(params.io->nodes + item.counter, int64_t(pixels) * level.c * (item.end - item.begin));
}

template <class T>
__device__ inline void paths(const PathsParams& params) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ PathItems items;
  __shared__ PathItem found[2];
  if (threadIdx.x < 2 * kScales) {
    const int s = threadIdx.x % kScales;
    const bool down = threadIdx.x >= kScales;
    items[down][s] = path_items(down ? params.down[s] : params.up[s], params.level[s], down, kIsFloat<T>);
  }
  __syncthreads();
  for (int i = 0;; ++i) {
    PathItem& item = found[i % 2];
    if (threadIdx.x == 0) find_path_item<T>(params, items, blockIdx.x + i * gridDim.x, item);
    __syncthreads();
    if (!item.found) return;
    const Matrix& w = item.down ? params.down[item.scale] : params.up[item.scale];
    with_width<T>(w, [&](auto width) { path_item<T, width.value>(params, item, w, memory); });
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(paths, PathsParams, kThreads, kPathsResident)
