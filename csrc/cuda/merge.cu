// A step of the decoder, one scale of all samples: f = ReLU(1x1(f_s + bilinear_x2(coarse))). f_s is the last row's keep
// output with its alpha, zero where the node is absent or its keep is closed: then its map is not read.
//
// Work: an item is a tile of 8 x 8 pixels (16-bit types with 64 output channels; 4 or 16 lines else) times one or
// several blocks of output channels, cut as paths.cu does it. 128 threads as 2 x 2 warps, blocks take every
// gridDim.x-th item.
// The pixels' tile is made, not copied: 8 threads have 128 contiguous bytes of two neighbouring pixels, 2 groups of 16
// bytes of the map and 6 of the coarse map each (a bilinear x2 mixes 2 lines, and two outputs share the middle one of
// 3 columns). The sum is in float, in the CPU engine's order, and rounded once on its way into shared memory. An 8 x 8
// tile reads 36 coarse pixels, 20 of them its neighbours' too: those come from L1 or L2. Weights stream from L2.
// 38 KB of shared memory, at most 102 registers: five blocks per multiprocessor on H100.
#include "merge.h"
#include "pointwise.cuh"

namespace dynroute::cuda {

// Adds a line's mix of `coarse`, at three neighbouring columns, to two pixels: weights 3/4 and 1/4 across and along.
template <class T>
__device__ inline void add_coarse(float (&left)[kVector<T>], float (&right)[kVector<T>], const uint4 (&near)[3],
                                  const uint4 (&far)[3]) {
  float mixed[3][kVector<T>];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    float a[kVector<T>], b[kVector<T>];
    unpack<T>(near[i], a);
    unpack<T>(far[i], b);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) mixed[i][j] = fmaf(0.75f, a[j], 0.25f * b[j]);
  }
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    const float middle = 0.75f * mixed[1][j];
    left[j] += fmaf(0.25f, mixed[0][j], middle);
    right[j] += fmaf(0.25f, mixed[2][j], middle);
  }
}

template <class T, int Width>
__device__ inline void merge_item(const MergeParams& params, int item, int tiles, const Cut& part, void* memory) {
  constexpr int kColumns = kMergeTileWidth, kLines = Tile<T, Width>::BM / kColumns;
  const Matrix& w = params.weight;
  const Level& level = params.level;
  const int begin = item % part.parts * part.channels, end = min(begin + part.channels, w.n);
  const int tile = item / part.parts % tiles;
  const int sample = item / part.parts / tiles, c = level.c;
  const int across = ceil_of(level.w, kColumns), y0 = tile / across * kLines, x0 = tile % across * kColumns;

  const Node& node = params.row.nodes[sample * kScales + params.scale];
  const float keep = node.present ? node.weight[kKeep] : 0;
  const int64_t size = int64_t(level.h) * level.w * c;
  const T* map = keep != 0 ? static_cast<const T*>(level.map[node.out_map]) + sample * size : nullptr;
  const T* coarse = params.coarse ? static_cast<const T*>(params.coarse) + sample * (size / 4) : nullptr;

  const auto fill = [&](T* a, int lda, int k, int count) {
#pragma unroll 1
    for (int pair = threadIdx.x / 8; pair < kColumns / 2 * kLines; pair += kThreads / 8) {
      const int y = y0 + pair / (kColumns / 2), x = x0 + pair % (kColumns / 2) * 2;
      const bool inside[2] = {y < level.h && x < level.w, y < level.h && x + 1 < level.w};
      // lines and columns of the coarse map; its border is repeated
      const int h = level.h / 2, width = level.w / 2, near = y / 2, middle = x / 2;
      const int far = min(max(y % 2 ? near + 1 : near - 1, 0), h - 1);
      const int columns[3] = {max(middle - 1, 0), middle, min(middle + 1, width - 1)};
      const int64_t at = (int64_t(y) * level.w + x) * c;
#pragma unroll 1
      for (int i = threadIdx.x % 8 * kVector<T>; i < count; i += 8 * kVector<T>) {
        const bool valid = inside[0] && k + i < c;
        uint4 groups[2] = {}, from_near[3], from_far[3];
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (map && valid && inside[j]) groups[j] = load_group(map + at + j * c + k + i);
        if (coarse && valid)
#pragma unroll
          for (int j = 0; j < 3; ++j) {
            from_near[j] = load_group(coarse + (int64_t(near) * width + columns[j]) * c + k + i);
            from_far[j] = load_group(coarse + (int64_t(far) * width + columns[j]) * c + k + i);
          }
        float sums[2][kVector<T>];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          unpack<T>(groups[j], sums[j]);
#pragma unroll
          for (float& value : sums[j]) value *= keep;
        }
        if (coarse && valid) add_coarse<T>(sums[0], sums[1], from_near, from_far);
#pragma unroll
        for (int j = 0; j < 2; ++j) store_group(a + (2 * pair + j) * lda + i, pack<T>(sums[j]));
      }
    }
  };
  T* const out = static_cast<T*>(params.out) + int64_t(sample) * level.h * level.w * w.n;
  const auto destination = [&](int pixel) {
    const int y = y0 + pixel / kColumns, x = x0 + pixel % kColumns;
    return y < level.h && x < level.w ? out + (int64_t(y) * level.w + x) * w.n : nullptr;
  };
  pointwise_item<T, Width>(w, begin, end, memory, fill, destination);

  if (threadIdx.x == 0) {
    const int64_t pixels = min(kLines, level.h - y0) * min(kColumns, level.w - x0);
    count(params.io->other + sample * 3 + 1, pixels * c * (end - begin));
  }
}

template <class T>
__device__ inline void merge(const MergeParams& params) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Matrix& w = params.weight;
  const PointwiseTile tile = pointwise_tile(w, kIsFloat<T>);
  const int tiles = merge_tiles(params.level, tile);
  const Cut part = cut(w, tile, tiles);
  for (int item = blockIdx.x; item < params.n * tiles * part.parts; item += gridDim.x)
    with_width<T>(w, [&](auto width) { merge_item<T, width.value>(params, item, tiles, part, memory); });
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(merge, MergeParams, kThreads, kMergeResident)
