// A work item of a depthwise 3x3 + pointwise stage, for the kernels that walk over such items.
//
// 8 x 8 output pixels (float: 8 x 4), which are the matrix product's BM, of one sample, and all output channels; where
// a scale has too few tiles for the machine, part of the channels.
//   depthwise: the tile's input with its halo, zeros outside the map, comes in chunks of 64 channels through cp.async
//     into two buffers, one chunk ahead. A thread makes 2 x 4 pixels (float: 2 x 2) of 4 channels: 24 shared reads of 4
//     channels serve 8 pixels' 72 taps, with the 9 x 4 weights in registers. (4 pixels of 8 channels, read 16 bytes at
//     a time, would read and convert half as much again.) The sums, rounded, are the rows of A. Lanes lie along
//     channels: no bank conflicts.
//   pointwise: per block of 64 output channels the product (gemm.cuh), shift, X, ReLU, stores. A stays; weights of up
//     to 64 x 64 stay too, as long as the scale does; others stream.
// Halo and product share their memory. Global memory: the input 1.56 times (float 1.88; stride 2: 1.13 and 1.2), the
// halo's share from L2; X, where added, from L2; the weights once per item, or once.
#pragma once
#include "gemm.cuh"
#include "sepconv.h"

namespace dynroute::cuda {

constexpr int kGroup = 4;  // channels of a thread
constexpr int kGroups = kSepconvChannels / kGroup;

template <class T, int Width>
using SepconvTile = GemmTile<T, kSepconvWide * sepconv_high(sizeof(T)), Width, kSepconvThreads>;

template <class T>
struct Patch {  // output pixels of a thread
  static constexpr int kHigh = 2, kWide = kIsFloat<T> ? 1 : 2;
  static constexpr int kInRow = kSepconvWide / kWide;
  template <int Width>
  static constexpr bool knows = sizeof(GemmShared<SepconvTile<T, Width>>) <= sepconv_gemm_bytes(Width, sizeof(T));
  static_assert(knows<64> && knows<128>, "the host knows the product's memory");
  static_assert(kSepconvWide * sepconv_high(sizeof(T)) / (kHigh * kWide) * kGroups == kSepconvThreads,
                "every thread has one patch of a chunk");
  static_assert(bytes_of_a<SepconvTile<T, 64>>(64) == sepconv_a_bytes(64, sizeof(T)), "and A's");
};

// Four 16-bit values to and from floats.
template <class T>
__device__ inline void unpack_four(uint2 words, float (&values)[4]) {
  const float2 low = to_float2(words.x, T()), high = to_float2(words.y, T());
  values[0] = low.x, values[1] = low.y, values[2] = high.x, values[3] = high.y;
}
template <class T>
__device__ inline uint2 pack_four(const float (&values)[4]) {
  return {from_float2(values[0], values[1], T()), from_float2(values[2], values[3], T())};
}

// Four values in shared memory.
template <class T>
__device__ inline void load_four(const T* from, float (&values)[kGroup]) {
  if constexpr (kIsFloat<T>) unpack<T>(load_group(from), values);
  else unpack_four<T>(*reinterpret_cast<const uint2*>(from), values);
}
template <class T>
__device__ inline void store_four(T* to, const float (&values)[kGroup]) {
  if constexpr (kIsFloat<T>) store_group(to, pack<T>(values));
  else *reinterpret_cast<uint2*>(to) = pack_four<T>(values);
}

// A work item, in shared memory: what all threads know alike needs no registers of each.
struct SepconvItem {
  SepconvStage stage;
  const void* from;  // the tile's first pixel: of the input,
  const void* add;   // of X, or null,
  void* to;          // of the output
  int scale, sample, x, y;
  int first, last;  // output channels
  int front;        // bytes before A
  int stay, fresh;  // weights stay, and have to be fetched first
  int number;       // of all the launch's items; -1: there are no more
};

// Where a stage reads or writes.
__device__ inline void* stage_map(int which, const void* plain, const ScaleMaps& maps, const Node& node) {
  if (which == kPlain) return const_cast<void*>(plain);
  return which == kBetween ? maps.halves : maps.map[which == kX ? node.x_map : node.out_map];
}

// Item number `number` of all; by one thread. `last_scale`: of the item that the block does before.
template <class T>
__device__ inline void find_item(const SepconvParams& p, int number, int last_scale, SepconvItem& item) {
  item.number = -1;
  int at = number;
#pragma unroll 1
  for (int s = kScales - 1; s >= 0; --s) {
    const SepconvStage& stage = p.stage[s];
    if (!stage.depthwise) continue;
    const bool plain = stage.from == kPlain;
    const bool all = plain && !p.row.counts;
    const int listed = all ? p.n : p.row.counts[kOpen * kScales + s], tiles = sepconv_tiles(stage, sizeof(T));
    const int parts = sepconv_parts(listed * tiles, stage.pointwise.n_pad), here = listed * tiles * parts;
    if (at >= here) {
      at -= here;
      continue;
    }
    const int in_row = ceil_div(stage.w_out, kSepconvWide);
    const int part = at % parts, tile = at / parts % tiles, in_list = at / parts / tiles;
    const int sample = all ? in_list : p.row.samples[(kOpen * kScales + s) * p.n + in_list];
    const int x = tile % in_row * kSepconvWide, y = tile / in_row * sepconv_high(sizeof(T));
    const int n = stage.pointwise.n, blocks = ceil_div(stage.pointwise.n_pad, 64);
    Node node = {};
    if (!plain) node = p.row.nodes[sample * kScales + s];
    const auto pixel = [&](void* map, int h, int w, int c, int stride) {
      return static_cast<T*>(map) + ((int64_t(sample) * h + y * stride) * w + x * stride) * c;
    };
    item.stage = stage;
    item.from =
        pixel(stage_map(stage.from, stage.plain_x, p.maps[s], node), stage.h_in, stage.w_in, stage.c_in, stage.stride);
    item.to = pixel(stage_map(stage.to, stage.plain_out, p.maps[s], node), stage.h_out, stage.w_out, n, 1);
    void* added = nullptr;
    if (plain) added = const_cast<void*>(stage.plain_residual);
    else if (stage.residual) added = stage_map(kX, nullptr, p.maps[s], node);
    item.add = added ? pixel(added, stage.h_out, stage.w_out, n, 1) : nullptr;
    item.scale = s, item.sample = sample, item.x = x, item.y = y;
    item.first = blocks * part / parts * 64;
    item.last = min(blocks * (part + 1) / parts * 64, n);
    item.front = sepconv_front(stage.pointwise, stage.stride, sizeof(T));
    item.stay = sepconv_weights_stay(stage.pointwise);
    item.fresh = item.stay && s != last_scale;
    item.number = number;
    return;
  }
}

// A chunk of the tile's input, if there is one, on its way into `to` [halo pixels][64]. Within a tile 32-bit offsets
// suffice; nothing is read outside the map, whatever the address.
template <class T, int kStride>
__device__ inline void fetch_halo(T* to, const SepconvItem& item, int chunk) {
  constexpr int wide = sepconv_halo(kSepconvWide, kStride), high = sepconv_halo(sepconv_high(sizeof(T)), kStride);
  constexpr int per_pixel = kSepconvChannels / kVector<T>;
  const int thread = thread_here();
  const int in_chunk = thread % per_pixel * kVector<T>, at = chunk * kSepconvChannels + in_chunk;
  if (at < item.stage.pointwise.k_pad) {
    constexpr int step = kSepconvThreads / per_pixel, pixels = wide * high;
    const T* from = static_cast<const T*>(item.from);
    const int c = item.stage.c_in, w = item.stage.w_in, h = at < c ? item.stage.h_in : 0;
    const int first = thread / per_pixel;
    int column = first % wide - 1, row = first / wide - 1, offset = (row * w + column) * c + at;
    const int x0 = item.x * kStride, y0 = item.y * kStride;
#pragma unroll
    for (int i = 0; i < ceil_div(pixels, step); ++i) {
      const bool valid = unsigned(x0 + column) < unsigned(w) && unsigned(y0 + row) < unsigned(h);
      if (first + i * step < pixels)
        copy_async(to + (first + i * step) * kSepconvChannels + in_chunk, from + offset, valid);
      column += step % wide, row += step / wide, offset += (step / wide * w + step % wide) * c;
      if (column >= wide - 1) column -= wide, ++row, offset += (w - wide) * c;
    }
  }
  commit_copies();
}

// A [BM][k_pad] = depthwise of the tile, whose first chunk is on its way. The block has to meet before A is read.
template <class T, int kStride>
__device__ inline void depthwise(unsigned char* memory, const SepconvItem& item) {
  using P = Patch<T>;
  constexpr bool ahead = sepconv_buffers(kStride) == 2;
  constexpr int halo_wide = sepconv_halo(kSepconvWide, kStride);
  constexpr int buffer = sepconv_halo(sepconv_high(sizeof(T)), kStride) * halo_wide * kSepconvChannels;
  const int thread = thread_here(), group = thread % kGroups * kGroup, patch = thread / kGroups;
  const int patch_x = patch % P::kInRow * P::kWide, patch_y = patch / P::kInRow * P::kHigh;
  const int& k_pad = item.stage.pointwise.k_pad;  // read where needed: a copy would be one more register
  T* halo = reinterpret_cast<T*>(memory);
#pragma unroll 1
  for (int chunk = 0; chunk * kSepconvChannels < k_pad; ++chunk) {
    const int channel = chunk * kSepconvChannels + group;  // of this thread the first
    T* here = halo + (ahead ? chunk % 2 * buffer : 0);
    if (ahead) fetch_halo<T, kStride>(halo + (chunk + 1) % 2 * buffer, item, chunk + 1);
    float weight[9][kGroup];
    const int c = item.stage.c_in;
    const float* from_weight = item.stage.depthwise + channel;
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
      const float4* four = reinterpret_cast<const float4*>(from_weight + tap * c);
      *reinterpret_cast<float4*>(weight[tap]) = channel < c ? __ldg(four) : float4{0, 0, 0, 0};
    }
    wait_copies<ahead ? 1 : 0>();
    __syncthreads();
    if (channel < k_pad) {
      float sum[P::kHigh][P::kWide][kGroup] = {};
      const T* from = here + (patch_y * halo_wide + patch_x) * kStride * kSepconvChannels + group;
#pragma unroll
      for (int y = 0; y < sepconv_halo(P::kHigh, kStride); ++y)
#pragma unroll
        for (int x = 0; x < sepconv_halo(P::kWide, kStride); ++x) {
          float value[kGroup];
          load_four(from + (y * halo_wide + x) * kSepconvChannels, value);
#pragma unroll
          for (int i = 0; i < P::kHigh; ++i)
#pragma unroll
            for (int j = 0; j < P::kWide; ++j) {
              const int ky = y - i * kStride, kx = x - j * kStride;
              if (ky < 0 || ky > 2 || kx < 0 || kx > 2) continue;
#pragma unroll
              for (int k = 0; k < kGroup; ++k) sum[i][j][k] = fmaf(value[k], weight[ky * 3 + kx][k], sum[i][j][k]);
            }
        }
      const int lda = row_of_a<SepconvTile<T, 64>>(k_pad);
      T* to = reinterpret_cast<T*>(memory + item.front) + (patch_y * kSepconvWide + patch_x) * lda + channel;
#pragma unroll
      for (int i = 0; i < P::kHigh; ++i)
#pragma unroll
        for (int j = 0; j < P::kWide; ++j) store_four(to + (i * kSepconvWide + j) * lda, sum[i][j]);
    }
    if ((chunk + 1) * kSepconvChannels < k_pad) __syncthreads();
    if (!ahead) fetch_halo<T, kStride>(halo, item, chunk + 1);
  }
}

// What a thread stores of a block of output channels: 8 of them, of some of the pixels, which are rows apart.
struct Own {
  int channel;
  int at, step;  // where the first pixel's values lie, from the tile's first ones on; how much further the next one's
  int pixels;    // inside the map
  bool flip;     // handles the second half of its channels first: no bank conflicts
};
template <class Tile>
struct OwnPixels {
  static constexpr int kGroups = Tile::BN / 8, kStep = Tile::kBlock / kGroups, kPixels = Tile::BM / kStep;
  static constexpr int kWords = 8 / kVector<typename Tile::T>;  // groups of 16 bytes in 8 channels
};
template <class Tile>
__device__ inline Own own_results(const SepconvItem& item, int n, int thread) {
  using O = OwnPixels<Tile>;
  constexpr int rows = O::kStep / kSepconvWide;
  const int channel = n + thread % O::kGroups * 8, column = thread / O::kGroups % kSepconvWide,
            row = thread / O::kGroups / kSepconvWide;
  const int channels = item.stage.pointwise.n, w = item.stage.w_out, high = item.stage.h_out - item.y;
  const bool any = channel < channels && item.x + column < w;
  return {channel, (row * w + column) * channels + channel, rows * w * channels,
          any ? min(ceil_div(high - row, rows), O::kPixels) : 0, thread % 8 >= 4};
}

__device__ inline uint4 halves_swapped(const uint4& group) { return {group.z, group.w, group.x, group.y}; }

// X at a thread's results, on its way.
template <class Tile>
using Added = uint4[OwnPixels<Tile>::kPixels][OwnPixels<Tile>::kWords];
template <class Tile>
__device__ inline void load_added(Added<Tile>& x, const SepconvItem& item, const Own& own) {
  using T = typename Tile::T;
  using O = OwnPixels<Tile>;
  const T* from = static_cast<const T*>(item.add);
  if (!from) return;
#pragma unroll
  for (int i = 0; i < O::kPixels; ++i)
#pragma unroll
    for (int j = 0; j < O::kWords; ++j)
      if (i < own.pixels)
        x[i][j] = __ldcg(reinterpret_cast<const uint4*>(from + own.at + i * own.step) +
                         (own.flip ? O::kWords - 1 - j : j));
}

// A thread's results: shift, X, ReLU, stores.
template <class Tile>
__device__ inline void store_results(const GemmShared<Tile>& shared, const SepconvItem& item, const Own& own,
                                     const Added<Tile>& x, int thread) {
  using T = typename Tile::T;
  using O = OwnPixels<Tile>;
  if (own.pixels == 0) return;
  const int half[2] = {own.flip ? 4 : 0, own.flip ? 0 : 4};
  float4 shift[2];
#pragma unroll
  for (int h = 0; h < 2; ++h)
    shift[h] = *reinterpret_cast<const float4*>(item.stage.pointwise.shift + own.channel + half[h]);
  const bool add = item.add, relu = item.stage.relu;
  const int pixel = thread / O::kGroups;  // the thread's others are swapped alike
  const float* from = &shared.results[pixel][shared.place(pixel, thread % O::kGroups)];
  static_assert(O::kStep % 4 == 0);
#pragma unroll
  for (int i = 0; i < O::kPixels; ++i) {
    if (i >= own.pixels) return;
    T* to = static_cast<T*>(item.to) + own.at + i * own.step;
    const uint4 added = kIsFloat<T> || !own.flip ? x[i][0] : halves_swapped(x[i][0]);
    uint2 packed[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float4 sums =
          *reinterpret_cast<const float4*>(from + i * O::kStep * Tile::BN + half[h]);
      float values[4] = {sums.x + shift[h].x, sums.y + shift[h].y, sums.z + shift[h].z, sums.w + shift[h].w};
      if (add) {
        float more[4];
        if constexpr (kIsFloat<T>) unpack<T>(x[i][h], more);
        else unpack_four<T>(h == 0 ? uint2{added.x, added.y} : uint2{added.z, added.w}, more);
#pragma unroll
        for (int j = 0; j < 4; ++j) values[j] += more[j];
      }
      if (relu)
#pragma unroll
        for (int j = 0; j < 4; ++j) values[j] = fmaxf(values[j], 0.f);
      if constexpr (kIsFloat<T>) store_global(to + half[h], pack<T>(values));
      else packed[h] = pack_four<T>(values);
    }
    if constexpr (!kIsFloat<T>) {
      const uint4 group = {packed[0].x, packed[0].y, packed[1].x, packed[1].y};
      store_global(to, own.flip ? halves_swapped(group) : group);
    }
  }
}

template <class T>
__device__ inline void count_item(const SepconvParams& p, const SepconvItem& item) {
  const SepconvStage& stage = item.stage;
  const int pixels = min(kSepconvWide, stage.w_out - item.x) * min(sepconv_high(sizeof(T)), stage.h_out - item.y);
  const int64_t macs = int64_t(pixels) * stage.c_in * ((item.first == 0 ? 9 : 0) + item.last - item.first);
  if (stage.from != kPlain)
    count(p.io->node_macs + node_index(item.sample, p.rows, p.row_index, item.scale) * kNodeParts + kCellPart, macs);
  else if (p.stem) count(p.io->sample_macs + item.sample * kSampleParts + kStemPart, macs);
}

// Weights that stay lie behind A.
template <class T>
__device__ inline T* weights_of(unsigned char* memory, const SepconvItem& item) {
  return reinterpret_cast<T*>(memory + item.front + sepconv_a_bytes(item.stage.pointwise.k_pad, sizeof(T)));
}

// Output channels from n on, of A.
template <class Tile>
__device__ inline void pointwise(unsigned char* memory, const SepconvItem& item, int n) {
  using T = typename Tile::T;
  GemmShared<Tile>& shared = *reinterpret_cast<GemmShared<Tile>*>(memory);
  const Matrix w = item.stage.pointwise;
  const int thread = thread_here();
  const PixelRows<Tile> a(reinterpret_cast<T*>(memory + item.front), row_of_a<Tile>(w.k_pad), thread);
  typename Tile::Accumulators sums;
  clear(sums);
  if (Tile::BN == 64 && item.stay) {
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < w.k_pad; k += Tile::BK)
      multiply_chunk<Tile>(sums, a, k, weights_of<T>(memory, item) + k * Tile::BN, thread);
  } else {
    multiply<Tile>(sums, a, w, n, 0, w.k_pad, shared, thread);
  }
  const Own own = own_results<Tile>(item, n, thread);
  Added<Tile> x;
  load_added<Tile>(x, item, own);  // on its way while the sums are laid out
  finish<Tile>(sums, shared, thread);
  store_results<Tile>(shared, item, own, x, thread);
}

// One item, by the whole block, which has met since it was found, and since the memory was last used. `ahead` is called
// by one thread while the halo is on its way. kStride: the largest that stages have.
template <class T, int kStride, class Ahead>
__device__ inline void sepconv_item(const SepconvParams& p, const SepconvItem& item, unsigned char* memory,
                                    Ahead&& ahead) {
  T* halo = reinterpret_cast<T*>(memory);
  if (item.fresh) {
    WeightStream<SepconvTile<T, 64>> stream(item.stage.pointwise, 0, 0, weights_of<T>(memory, item), thread_here());
    for (int k = 0; k < item.stage.pointwise.k_pad / SepconvTile<T, 64>::BK; ++k) stream.fetch(k);
  }
  const bool one = kStride == 1 || item.stage.stride == 1;
  if (one) fetch_halo<T, 1>(halo, item, 0);
  else fetch_halo<T, kStride>(halo, item, 0);
  if (threadIdx.x == 0) ahead();
  if (one) depthwise<T, 1>(memory, item);
  else depthwise<T, kStride>(memory, item);
  for (int n = item.first; n < item.last;)
    if (sepconv_width(item.last - n) == 128) pointwise<SepconvTile<T, 128>>(memory, item, n), n += 128;
    else pointwise<SepconvTile<T, 64>>(memory, item, n), n += 64;
  if (threadIdx.x == 0) count_item<T>(p, item);
}

}  // namespace dynroute::cuda
