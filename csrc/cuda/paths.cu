// The outgoing paths of a row's open nodes, all scales and both directions in one launch: up, C -> C/2 at stride 1, and
// down, C -> 2C at the even pixels. The input lies ReLU'd in map[out_map]; results go, ReLU'd and not yet weighted, to
// the scale's halves, where the next row's aggregate pulls them.
//
// Work: an item is 64 pixels x 64 output channels or several such blocks, on 128 threads as 2 x 2 warps; 128 x 32 where
// 32 channels are left (pointwise.h). Fine scales have tiles enough and an item does all output channels of its pixels;
// coarse scales have few, and wide outputs, which go to different blocks. Down comes before up, and coarse before fine:
// the longest items first. Blocks stay and take every gridDim.x-th item.
// Memory: of a map an up path reads every pixel once per item that shares it, a down path the quarter it needs, 16
// bytes a thread and 128 contiguous bytes of a pixel per 8 threads; weights stream from L2 through a ring of three
// chunks. 36 KB of shared memory (at most 39) and at most 102 registers: five blocks per multiprocessor on H100, two on
// sm_86.
#include "paths.h"
#include "pointwise.cuh"
#include "schedule.cuh"

namespace dynroute::cuda {

struct PathsShared {
  int items[2][kScales];  // of one sample: first down, then up
  int downs;              // of all samples
  int from[128];          // where in its map each of a tile's pixels lies
};

template <class T, int Width>
__device__ inline void path_item(const PathsParams& params, const Work& work, bool down, PathsShared& shared,
                                 void* memory) {
  constexpr int BM = Tile<T, Width>::BM;
  static_assert(BM <= kThreads, "one thread per pixel");
  const Level& level = params.level[work.scale];
  const Matrix& w = down ? params.down[work.scale] : params.up[work.scale];
  const int c = level.c, pixels = path_pixels(level, down);
  constexpr PointwiseTile tile = tile_of<T, Width>;
  const Cut part = cut(w, tile, ceil_of(pixels, BM));
  const int first_pixel = work.tile / part.parts * BM, limit = min(BM, pixels - first_pixel);
  const int begin = work.tile % part.parts * part.channels, end = min(begin + part.channels, w.n);

  if (threadIdx.x < BM) {
    const int pixel = first_pixel + threadIdx.x, width = level.w / 2;
    const int at = down ? (pixel / width * level.w + pixel % width) * 2 : pixel;
    shared.from[threadIdx.x] = at * c;
  }
  __syncthreads();

  const int64_t size = int64_t(level.h) * level.w * c;
  const Node& node = params.row.nodes[work.sample * kScales + work.scale];
  const T* const x = static_cast<const T*>(level.map[node.out_map]) + work.sample * size;
  T* const out =
      static_cast<T*>(level.halves) + work.sample * size + (down ? size / 2 : 0) + int64_t(first_pixel) * w.n;
  const auto fill = [&](T* a, int lda, int k, int count) {
    for (int row = threadIdx.x / 8; row < BM; row += kThreads / 8)  // 8 threads copy 128 bytes of a pixel at a time
      for (int i = threadIdx.x % 8 * kVector<T>; i < count; i += 8 * kVector<T>) {
        const int at = shared.from[row];
        const bool valid = row < limit && k + i < c;
        copy_async(a + row * lda + i, x + (valid ? at + k + i : 0), valid);
      }
    commit_copies();
  };
  const auto destination = [&](int row) { return row < limit ? out + int64_t(row) * w.n : nullptr; };
  pointwise_item<T, Width>(w, tile.slice, begin, end, memory, fill, destination);

  if (threadIdx.x == 0) {
    const int64_t at = (int64_t(work.sample) * params.rows + params.row_index) * kScales + work.scale;
    count(params.io->nodes + at * 5 + (down ? 4 : 2), int64_t(limit) * c * (end - begin));
  }
}

template <class T>
__device__ inline void paths(const PathsParams& params) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ PathsShared shared;
  if (threadIdx.x < 2 * kScales) {
    const int s = threadIdx.x % kScales;
    const bool down = threadIdx.x < kScales;
    const Matrix& w = down ? params.down[s] : params.up[s];
    shared.items[!down][s] = path_items(w, params.level[s], down, kIsFloat<T>);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.downs = 0;
#pragma unroll
    for (int s = 0; s < kScales; ++s) shared.downs += shared.items[0][s] * params.row.counts[kDownOpen * kScales + s];
  }
  __syncthreads();
  for (int at = blockIdx.x;; at += gridDim.x) {
    Work work;
    const bool down = at < shared.downs;
    if (down) find_work(params.row, kDownOpen, shared.items[0], params.n, at, work);
    else if (!find_work(params.row, kUpOpen, shared.items[1], params.n, at - shared.downs, work)) return;
    const Matrix& w = down ? params.down[work.scale] : params.up[work.scale];
    with_width<T>(w, [&](auto width) { path_item<T, width.value>(params, work, down, shared, memory); });
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(paths, PathsParams, kThreads, kPathsResident)
