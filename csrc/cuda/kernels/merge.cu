// A step of the decoder, one scale of all samples: f = ReLU(1x1(f_s + bilinear_x2(coarse))). f_s is the last row's keep
// output with its alpha, zero where the node is absent or its keep is closed: then its map is not read.
//
// Work: an item is a tile of 8 x 8 pixels (16 lines of 8 where 32 output channels are left) times one or several blocks
// of output channels, cut as those of paths are (path_item.cuh); 128 threads, blocks take every gridDim.x-th item.
// Memory: the map's tile goes where the product wants its A, the coarse pixels under it with a border of one, 6 x 6,
// behind it: all by cp.async, at once, 128 contiguous bytes of a pixel per 8 threads. Then A is made in place: of two
// pixels side by side a thread mixes 2 lines x 3 columns of coarse ones, in float and in the CPU engine's order, and
// rounds the sum once. A map is read once per item of a tile, a coarse one 2.25 times, mostly from L2; weights stream.
// Shared memory at C = 64, 128, 256, 512 of 16 bits: 26, 39, 63 and 45 KB, the last one without a coarse map and with k
// in two slices. At most 128 registers: four blocks per multiprocessor on H100 but at C = 256, three.
#include "merge.h"
#include "pointwise.cuh"

namespace dynroute::cuda {

// From `near` and `far`, two lines of coarse pixels that are `pitch` apart, to two pixels of A below the middle one of
// three: weights 3/4 and 1/4 down the columns, then along the line.
template <class T>
__device__ inline void add_coarse(T* a, int pitch, const T* near, const T* far, float keep) {
  constexpr int kVec = kVector<T>;
  float mixed[3][kVec];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    float other[kVec];
    unpack<T>(load_group(near + i * pitch), mixed[i]);
    unpack<T>(load_group(far + i * pitch), other);
#pragma unroll
    for (int j = 0; j < kVec; ++j) mixed[i][j] = fmaf(0.75f, mixed[i][j], 0.25f * other[j]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sums[kVec];
    unpack<T>(load_group(a + i * pitch), sums);
#pragma unroll
    for (int j = 0; j < kVec; ++j) sums[j] = fmaf(0.25f, mixed[2 * i][j], 0.75f * mixed[1][j]) + keep * sums[j];
    store_group(a + i * pitch, pack<T>(sums));
  }
}

template <class Tile>
__device__ inline void merge_item(const MergeParams& params, int item, int tiles, int slice, const Cut& part,
                                  void* memory) {
  using T = typename Tile::T;
  constexpr int kVec = kVector<T>, kColumns = kMergeTileWidth, kLines = Tile::BM / kColumns;
  constexpr int kCoarseColumns = kColumns / 2 + 2, kCoarseLines = kLines / 2 + 2;
  static_assert(kCoarseColumns * kCoarseLines == merge_coarse_pixels(tile_of<Tile>), "what the host has reserved");
  const Matrix& w = params.weight;
  const int h = params.maps.shape.h, width = params.maps.shape.w, c = params.maps.shape.c;
  const int begin = item % part.parts * part.channels, end = min(begin + part.channels, w.n);
  const int tile = item / part.parts % tiles, sample = item / part.parts / tiles;
  const int across = ceil_div(width, kColumns), y0 = tile / across * kLines, x0 = tile % across * kColumns;

  const Node& node = params.row.nodes[sample * kScales + params.scale];
  const float keep = node.present ? node.weight[kKeep] : 0;
  const int64_t size = params.maps.shape.size();
  const T* const map = keep != 0 ? static_cast<const T*>(params.maps.map[node.out_map]) + sample * size : nullptr;
  const T* const coarse = params.coarse ? static_cast<const T*>(params.coarse) + sample * (size / 4) : nullptr;
  const int first = threadIdx.x / 8, channel = threadIdx.x % 8 * kVec;
  constexpr int kPixels = kThreads / 8, kChannels = 8 * kVec;  // that the block handles at a time

  const auto fill = [&](T* a, int pitch, int k, int count) {
    T* const under = a + kLines * kColumns * pitch;
    for (int pixel = first; pixel < kLines * kColumns; pixel += kPixels) {
      const int y = y0 + pixel / kColumns, x = x0 + pixel % kColumns;
      const bool inside = map && y < h && x < width;
      for (int i = channel; i < count; i += kChannels) {
        const bool valid = inside && k + i < c;
        copy_async(a + pixel * pitch + i, valid ? map + (y * width + x) * c + k + i : w.weight, valid);
      }
    }
    if (coarse)
      for (int pixel = first; pixel < kCoarseLines * kCoarseColumns; pixel += kPixels) {
        // the border is repeated
        const int y = min(max(y0 / 2 - 1 + pixel / kCoarseColumns, 0), h / 2 - 1);
        const int x = min(max(x0 / 2 - 1 + pixel % kCoarseColumns, 0), width / 2 - 1);
        for (int i = channel; i < count; i += kChannels) {
          const bool valid = k + i < c;
          copy_async(under + pixel * pitch + i, valid ? coarse + (y * (width / 2) + x) * c + k + i : w.weight, valid);
        }
      }
    commit_copies();
    if (!coarse && (keep == 0 || keep == 1)) return;
    wait_copies<0>();
    __syncthreads();
    if (!coarse) {
      for (int pixel = first; pixel < kLines * kColumns; pixel += kPixels)
        for (int i = channel; i < count; i += kChannels) {
          float values[kVec];
          unpack<T>(load_group(a + pixel * pitch + i), values);
#pragma unroll
          for (float& value : values) value *= keep;
          store_group(a + pixel * pitch + i, pack<T>(values));
        }
      return;
    }
    for (int pair = first; pair < kLines * kColumns / 2; pair += kPixels) {
      const int y = pair / (kColumns / 2), x = pair % (kColumns / 2);
      const T* const near = under + ((y / 2 + 1) * kCoarseColumns + x) * pitch;
      const T* const far = near + (y % 2 ? 1 : -1) * kCoarseColumns * pitch;
#pragma unroll 1
      for (int i = channel; i < count; i += kChannels)
        add_coarse(a + 2 * pair * pitch + i, pitch, near + i, far + i, keep);
    }
  };
  T* const out = static_cast<T*>(params.out) + int64_t(sample) * h * width * w.n;
  const auto destination = [&](int pixel) {
    const int y = y0 + pixel / kColumns, x = x0 + pixel % kColumns;
    return y < h && x < width ? out + (y * width + x) * w.n : nullptr;
  };
  pointwise_item<Tile>(w, slice, begin, end, memory, kLeastAhead, fill, destination);

  if (threadIdx.x == 0) {
    const int64_t pixels = min(kLines, h - y0) * min(kColumns, width - x0);
    count(params.io->sample_macs + sample * kSampleParts + kDecoderPart, pixels * c * (end - begin));
  }
}

template <class T>
__device__ inline void merge(const MergeParams& params) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Matrix& w = params.weight;
  const PointwiseTile tile = merge_tile(w, kIsFloat<T>);
  const int tiles = merge_tiles(params.maps.shape, tile);
  const Cut part = cut(w, tile, tiles);
  for (int item = blockIdx.x; item < params.n * tiles * part.parts; item += gridDim.x) {
    with_tile<T>(w, [&](auto of) { merge_item<decltype(of)>(params, item, tiles, tile.slice, part, memory); });
    __syncthreads();  // the next item writes what this one may still read
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(merge, MergeParams, kThreads, kMergeResident)
