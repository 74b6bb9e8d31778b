// A step of the decoder, one scale of all samples: f = ReLU(1x1(f_s + bilinear_x2(coarse))). f_s is the last row's keep
// output with its alpha, zero where the node is absent or its keep is closed: then its map is not read.
//
// Work: an item is a tile of 8 x 8 pixels (16 lines of 8 where 32 output channels are left) times one or several blocks
// of output channels, cut as those of paths are (path_item.cuh); 128 threads, blocks take every gridDim.x-th item.
// Memory: the map's tile goes where the product wants its A, the coarse pixels under it with a border of one, 6 x 6,
// behind it: all by cp.async, at once, 128 contiguous bytes of a pixel per 8 threads. Then A is made in place: of two
// pixels side by side a thread mixes 2 lines x 3 columns of coarse ones (depthwise.cuh: float16 rounds each step). A
// map is read once per item of a tile, a coarse one 2.25 times, mostly from L2; weights stream. Shared memory at C =
// 64, 128, 256, 512 of 16 bits: 26, 39, 63 and 45 KB, the last one without a coarse map and with k in two slices. At
// most 128 registers: four blocks per multiprocessor on H100 but at C = 256, three.
#include "depthwise.cuh"
#include "merge.h"
#include "pointwise.cuh"

namespace dynroute::cuda {

// From `near` and `far`, two lines of coarse pixels that are `pitch` apart, to two pixels of A below the middle one of
// three: weights 3/4 and 1/4 down the columns, then along the line.
template <class T>
__device__ inline void add_coarse(T* a, int pitch, const T* near, const T* far, float keep) {
  using Values = Taps<T, kVector<T>>;
  const auto large = Values::weight_of(0.75f), small = Values::weight_of(0.25f);
  Values mixed[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    mixed[i] = taps<T>(load_group(near + i * pitch)).times(large);
    mixed[i].add(taps<T>(load_group(far + i * pitch)), small);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    Values sums = taps<T>(load_group(a + i * pitch)).times(Values::weight_of(keep));
    sums.add(mixed[1], large);
    sums.add(mixed[2 * i], small);
    store_group(a + i * pitch, sums.group());
  }
}

template <class Tile>
__device__ inline void merge_item(const MergeParams& params, int item, int slice, void* memory) {
  using T = typename Tile::T;
  constexpr int kVec = kVector<T>, kColumns = kMergeTileWidth, kLines = Tile::BM / kColumns;
  constexpr int kCoarseColumns = kColumns / 2 + 2, kCoarseLines = kLines / 2 + 2;
  static_assert(kCoarseColumns * kCoarseLines == merge_coarse_pixels(tile_of<Tile>), "what the host has reserved");
  const Matrix& w = params.weight;
  const int h = params.maps.shape.h, width = params.maps.shape.w, c = params.maps.shape.c;
  const Cut& part = params.part;
  const int of_all = item / part.parts, sample = of_all / params.tiles, tile = of_all - sample * params.tiles;
  const int begin = (item - of_all * part.parts) * part.channels, end = min(begin + part.channels, w.n);
  const int y0 = tile / params.across * kLines, x0 = tile % params.across * kColumns;

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
          T* const at = a + pixel * pitch + i;
          store_group(at, taps<T>(load_group(at)).times(Taps<T, kVec>::weight_of(keep)).group());
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
  for (int item = blockIdx.x; item < params.n * params.tiles * params.part.parts; item += gridDim.x) {
    with_tile<T>(w, [&](auto of) { merge_item<decltype(of)>(params, item, tile.slice, memory); });
    __syncthreads();  // the next item writes what this one may still read
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(merge, MergeParams, kThreads, kMergeResident)
