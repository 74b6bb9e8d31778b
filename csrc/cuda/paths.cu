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

template <class T, int Width>
__device__ inline void path_item(const PathsParams& params, const Work& work, bool down, void* memory) {
  using S = Tile<T, Width>;
  const Level& level = params.level[work.scale];
  const Matrix& w = down ? params.down[work.scale] : params.up[work.scale];
  const Node& node = params.row.nodes[work.sample * kScales + work.scale];
  const int c = level.c, width = down ? level.w / 2 : level.w, stride = down ? 2 : 1;
  const int pixels = down ? level.h / 2 * width : level.h * width;
  const int64_t size = int64_t(level.h) * level.w * c;
  const T* x = static_cast<const T*>(level.map[node.out_map]) + work.sample * size;
  T* out = static_cast<T*>(level.halves) + work.sample * size + (down ? size / 2 : 0);

  const Cut part = cut(w, ceil_of(pixels, S::BM));
  const int first_pixel = work.tile / part.parts * S::BM, first_block = work.tile % part.parts * part.blocks;

  const auto fill = [&](T* a, int lda, int k, int count) {
    constexpr int kRows = kThreads / 8;  // per pass: 8 threads copy 128 bytes of a pixel at a time
    const int begin = threadIdx.x % 8 * kVector<T>;
    int row = threadIdx.x / 8, pixel = first_pixel + row, x_out = pixel % width;
    int64_t at = down ? (int64_t(pixel / width) * 2 * level.w + x_out * 2) * c : int64_t(pixel) * c;
    for (; row < S::BM; row += kRows, pixel += kRows) {
      for (int i = begin; i < count; i += 8 * kVector<T>) {
        const bool valid = pixel < pixels && k + i < c;
        copy_async(a + row * lda + i, x + (valid ? at + k + i : 0), valid);
      }
      // kRows pixels further; only `down` has to know where lines end
      at += int64_t(kRows) * stride * c;
      if (down)
        for (x_out += kRows; x_out >= width; x_out -= width) at += int64_t(level.w) * c;
    }
    commit_copies();
  };
  const auto destination = [&](int row) {
    return first_pixel + row < pixels ? out + int64_t(first_pixel + row) * w.n : nullptr;
  };
  pointwise_item<T, Width>(w, first_block, part.blocks, memory, fill, destination);

  if (threadIdx.x == 0) {
    const int channels = min(w.n, (first_block + part.blocks) * Width) - first_block * Width;
    const int64_t at = (int64_t(work.sample) * params.rows + params.row_index) * kScales + work.scale;
    count(params.io->nodes + at * 5 + (down ? 4 : 2), int64_t(min(S::BM, pixels - first_pixel)) * c * channels);
  }
}

template <class T>
__device__ inline void paths(const PathsParams& params) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ int items[2][kScales];  // of one sample, first down, then up: in registers they would cost spills
  if (threadIdx.x < 2 * kScales) {
    const int s = threadIdx.x % kScales;
    const bool down = threadIdx.x < kScales;
    const Matrix& w = down ? params.down[s] : params.up[s];
    const int tiles = path_tiles(w, params.level[s], down, kIsFloat<T>);
    items[!down][s] = tiles == 0 ? 0 : tiles * cut(w, tiles).parts;
  }
  __syncthreads();
  int downs = 0;
#pragma unroll
  for (int s = 0; s < kScales; ++s) downs += items[0][s] * params.row.counts[kDownOpen * kScales + s];
  for (int at = blockIdx.x;; at += gridDim.x) {
    Work work;
    const bool down = at < downs;
    if (down) find_work(params.row, kDownOpen, items[0], params.n, at, work);
    else if (!find_work(params.row, kUpOpen, items[1], params.n, at - downs, work)) return;
    const Matrix& w = down ? params.down[work.scale] : params.up[work.scale];
    if (block_width(w.n_pad) == 64) path_item<T, 64>(params, work, down, memory);
    else path_item<T, 32>(params, work, down, memory);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(paths, PathsParams, kThreads, kPathsResident)
