// One depthwise 3x3 + pointwise stage, over the open samples of up to four scales, or over all samples (the stem).
//
// Work item: 8 x 8 output pixels (float: 8 x 4), which are the matrix product's BM, of one sample, and all output
// channels; where a scale has too few tiles for the machine, part of the channels. Blocks of 128 threads walk over the
// items, coarse scales first.
//   depthwise: the tile's input with its halo, zeros outside the map, comes in chunks of 64 channels through cp.async
//     into two buffers, one chunk ahead. A thread makes 2 x 4 pixels (float: 2 x 2) of 4 channels: 24 shared reads of 4
//     channels serve 8 pixels' 72 taps, and the 9 x 4 weights stay in registers, loaded while the chunk is on its way.
//     (8 channels of 4 pixels, read 16 bytes at a time, would convert and read half as much again.) The sums, rounded,
//     are the rows of A. Lanes lie along channels: no bank conflicts.
//   pointwise: A stays, weights stream (gemm.cuh): per block of 64 output channels, products, shift, X, ReLU, stores.
// The buffers of the halo and of the product share their memory: other blocks of the multiprocessor (7 fit at 64
// channels of 16 bits, 2 at 512) hide what this one waits for. Global memory: the input 1.56 times (float 1.88; stride
// 2: 1.13 and 1.2), of which the halo's share comes from L2; the weights once per item; X, where added, from L2.
#include "gemm.cuh"
#include "sepconv.h"

namespace dynroute::cuda {
namespace {

constexpr int kGroup = 4;  // channels of a thread
constexpr int kGroups = kSepconvChannels / kGroup;

template <class T>
struct Patch {  // output pixels of a thread
  static constexpr int kHigh = 2, kWide = kIsFloat<T> ? 2 : 4;
  static constexpr int kInRow = kSepconvWide / kWide;
  static_assert(Tile<T>::BM == kSepconvWide * sepconv_high(sizeof(T)), "a tile of pixels is a tile of the product");
  static_assert(Tile<T>::BM / (kHigh * kWide) * kGroups == kThreads, "every thread has one patch of a chunk");
  static_assert(sizeof(GemmShared<T>) == sepconv_gemm_bytes(sizeof(T)), "the host knows the product's memory");
  static_assert(bytes_of_a<T>(64) == sepconv_a_bytes(64, sizeof(T)) && Tile<T>::BN == 64, "and A's, and its blocks");
};

template <class T>
__device__ inline void load_four(const T* from, float (&values)[kGroup]) {
  if constexpr (kIsFloat<T>) {
    unpack<T>(load_group(from), values);
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    const float2 low = to_float2(words.x, T()), high = to_float2(words.y, T());
    values[0] = low.x, values[1] = low.y, values[2] = high.x, values[3] = high.y;
  }
}
template <class T>
__device__ inline void store_four(T* to, const float (&values)[kGroup]) {
  if constexpr (kIsFloat<T>) {
    store_group(to, pack<T>(values));
  } else {
    *reinterpret_cast<uint2*>(to) = {from_float2(values[0], values[1], T()), from_float2(values[2], values[3], T())};
  }
}

struct Item {
  int scale, sample, x, y;  // of the tile's first pixel
  int part, parts;
};

template <class T>
__device__ inline bool find_item(const SepconvParams& p, int at, Item& item) {
  constexpr int high = sepconv_high(sizeof(T));
#pragma unroll
  for (int s = kScales - 1; s >= 0; --s) {
    const SepconvStage& stage = p.stage[s];
    if (!stage.depthwise) continue;
    const bool plain = stage.from == kPlain;
    const int samples = plain ? p.n : p.row.counts[kOpen * kScales + s], tiles = sepconv_tiles(stage, sizeof(T));
    const int parts = sepconv_parts(samples * tiles, stage.pointwise.n_pad), here = samples * tiles * parts;
    if (at < here) {
      const int tile = at / parts % tiles, sample = at / (parts * tiles);
      const int in_row = (stage.w_out + kSepconvWide - 1) / kSepconvWide;
      item = {s,
              plain ? sample : p.row.samples[(kOpen * kScales + s) * p.n + sample],
              tile % in_row * kSepconvWide,
              tile / in_row * high,
              at % parts,
              parts};
      return true;
    }
    at -= here;
  }
  return false;
}

// The tile's input, `channels` (at most 64) of it from `channel` on, on its way into `to` [halo pixels][64].
template <class T, int kStride>
__device__ inline void fetch_halo(T* to, const SepconvStage& stage, const T* x, const Item& item, int channel) {
  constexpr int wide = sepconv_halo(kSepconvWide, kStride), high = sepconv_halo(sepconv_high(sizeof(T)), kStride);
  constexpr int per_pixel = kSepconvChannels / kVector<T>;
  const int at = channel + int(threadIdx.x) % per_pixel * kVector<T>;
  if (at >= stage.pointwise.k_pad) return;
  const int x0 = item.x * kStride - 1, y0 = item.y * kStride - 1;
#pragma unroll 4
  for (int pixel = int(threadIdx.x) / per_pixel; pixel < wide * high; pixel += kThreads / per_pixel) {
    const int from_x = x0 + pixel % wide, from_y = y0 + pixel / wide;
    const bool valid =
        unsigned(from_x) < unsigned(stage.w_in) && unsigned(from_y) < unsigned(stage.h_in) && at < stage.c_in;
    const T* from = x + (valid ? (int64_t(from_y) * stage.w_in + from_x) * stage.c_in + at : 0);
    copy_async(to + pixel * kSepconvChannels + (at - channel), from, valid);
  }
}

// A [BM][k_pad] = depthwise of the tile. Begins with a barrier; the block has to meet before A is read.
template <class T, int kStride>
__device__ inline void depthwise(T* a, T* halo, const SepconvMemory& memory, const SepconvStage& stage, const T* x,
                                 const Item& item) {
  using P = Patch<T>;
  constexpr int halo_wide = sepconv_halo(kSepconvWide, kStride);
  const int group = int(threadIdx.x) % kGroups * kGroup, place = int(threadIdx.x) / kGroups;
  const int patch_x = place % P::kInRow * P::kWide, patch_y = place / P::kInRow * P::kHigh;
  const int k_pad = stage.pointwise.k_pad, lda = row_of_a<T>(k_pad), buffer = memory.chunk / int(sizeof(T));
  const bool ahead = memory.buffers == 2;
  __syncthreads();  // the last item's results lie where the halo goes
  fetch_halo<T, kStride>(halo, stage, x, item, 0);
  commit_copies();
  for (int channel = 0, turn = 0; channel < k_pad; channel += kSepconvChannels, turn ^= int(ahead)) {
    if (ahead) {
      if (channel + kSepconvChannels < k_pad)
        fetch_halo<T, kStride>(halo + (turn ^ 1) * buffer, stage, x, item, channel + kSepconvChannels);
      commit_copies();
    }
    float weight[9][kGroup];
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
      const bool valid = channel + group < stage.c_in;
      const float4 four =
          valid ? __ldg(reinterpret_cast<const float4*>(stage.depthwise + tap * stage.c_in + channel + group))
                : float4{0, 0, 0, 0};
      weight[tap][0] = four.x, weight[tap][1] = four.y, weight[tap][2] = four.z, weight[tap][3] = four.w;
    }
    if (ahead) wait_copies<1>();
    else wait_copies<0>();
    __syncthreads();
    if (channel + group < k_pad) {
      float sum[P::kHigh][P::kWide][kGroup] = {};
      const T* from = halo + turn * buffer + (patch_y * halo_wide + patch_x) * kStride * kSepconvChannels + group;
#pragma unroll
      for (int y = 0; y < sepconv_halo(P::kHigh, kStride); ++y)
#pragma unroll
        for (int xx = 0; xx < sepconv_halo(P::kWide, kStride); ++xx) {
          float value[kGroup];
          load_four(from + (y * halo_wide + xx) * kSepconvChannels, value);
#pragma unroll
          for (int i = 0; i < P::kHigh; ++i)
#pragma unroll
            for (int j = 0; j < P::kWide; ++j) {
              const int ky = y - i * kStride, kx = xx - j * kStride;
              if (ky < 0 || ky > 2 || kx < 0 || kx > 2) continue;
#pragma unroll
              for (int c = 0; c < kGroup; ++c) sum[i][j][c] = fmaf(value[c], weight[ky * 3 + kx][c], sum[i][j][c]);
            }
        }
#pragma unroll
      for (int i = 0; i < P::kHigh; ++i)
#pragma unroll
        for (int j = 0; j < P::kWide; ++j)
          store_four(a + ((patch_y + i) * kSepconvWide + patch_x + j) * lda + channel + group, sum[i][j]);
    }
    if (channel + kSepconvChannels < k_pad) {
      __syncthreads();
      if (!ahead) {
        fetch_halo<T, kStride>(halo, stage, x, item, channel + kSepconvChannels);
        commit_copies();
      }
    }
  }
}

// Where a stage reads or writes for one sample, of `size` values.
template <class T>
__device__ inline T* place_of(int place, void* plain, const Level& level, const Node* node, int64_t offset) {
  void* base = place == kPlain     ? plain
               : place == kBetween ? level.halves
                                   : level.map[place == kX ? node->x_map : node->out_map];
  return static_cast<T*>(base) + offset;
}

template <class T>
__device__ inline void sepconv(const SepconvParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  GemmShared<T>& shared = *reinterpret_cast<GemmShared<T>*>(memory);
  Item item;
  for (int at = blockIdx.x; find_item<T>(p, at, item); at += gridDim.x) {
    const SepconvStage& stage = p.stage[item.scale];
    const Matrix& w = stage.pointwise;
    const Level& level = p.level[item.scale];
    const Node* node = p.row.nodes + item.sample * kScales + item.scale;
    const int64_t in = int64_t(item.sample) * stage.h_in * stage.w_in * stage.c_in;
    const T* x = place_of<T>(stage.from, const_cast<void*>(stage.plain_x), level, node, in);
    const SepconvMemory plan = sepconv_memory(w.k_pad, stage.stride, sizeof(T));
    T* a = reinterpret_cast<T*>(memory + plan.front);
    if (stage.stride == 1) depthwise<T, 1>(a, reinterpret_cast<T*>(memory), plan, stage, x, item);
    else depthwise<T, 2>(a, reinterpret_cast<T*>(memory), plan, stage, x, item);

    const int64_t out = int64_t(item.sample) * stage.h_out * stage.w_out * w.n;
    const T* residual = stage.residual ? place_of<T>(kX, nullptr, level, node, out) : nullptr;
    T* to = place_of<T>(stage.to, stage.plain_out, level, node, out);
    const int blocks = (w.n_pad + Tile<T>::BN - 1) / Tile<T>::BN;
    const int first = blocks * item.part / item.parts * Tile<T>::BN;
    const int last = min(blocks * (item.part + 1) / item.parts * Tile<T>::BN, w.n);
    for (int n = first; n < last; n += Tile<T>::BN) {
      typename Tile<T>::Accumulators sums;
      clear<T>(sums);
      multiply<T>(sums, a, row_of_a<T>(w.k_pad), w, n, 0, w.k_pad, shared);
      finish<T>(sums, shared);
      for_results<T>(shared, w, n, [&](int pixel, int channel, float (&values)[8]) {
        const int xx = item.x + pixel % kSepconvWide, y = item.y + pixel / kSepconvWide;
        if (xx >= stage.w_out || y >= stage.h_out || channel >= w.n) return;
        const int64_t here = (int64_t(y) * stage.w_out + xx) * w.n + channel;
#pragma unroll
        for (int i = 0; i < 8; i += kVector<T>) {
          float (&part)[kVector<T>] = reinterpret_cast<float (&)[kVector<T>]>(values[i]);
          if (residual) {
            float add[kVector<T>];
            unpack<T>(load_group(residual + here + i), add);
#pragma unroll
            for (int j = 0; j < kVector<T>; ++j) part[j] += add[j];
          }
          if (stage.relu)
#pragma unroll
            for (int j = 0; j < kVector<T>; ++j) part[j] = fmaxf(part[j], 0.f);
          store_group(to + here + i, pack<T>(part));
        }
      });
    }

    if (threadIdx.x == 0) {
      const int pixels = min(kSepconvWide, stage.w_out - item.x) * min(sepconv_high(sizeof(T)), stage.h_out - item.y);
      const int64_t macs = int64_t(pixels) * stage.c_in * ((item.part == 0 ? 9 : 0) + max(last - first, 0));
      if (stage.from != kPlain)
        count(p.io->nodes + ((int64_t(item.sample) * p.rows + p.row_index) * kScales + item.scale) * 5 + 1, macs);
      else if (p.stem) count(p.io->other + item.sample * 3, macs);
    }
  }
}

}  // namespace
}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(sepconv, SepconvParams, kThreads, kSepconvResident)
