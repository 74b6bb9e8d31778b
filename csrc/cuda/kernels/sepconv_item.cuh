// A work item of a depthwise 3x3 + pointwise stage, for the kernels that walk over such items.
//
// 8 x 8 output pixels (float: 8 x 4), which are the matrix product's BM, of one sample, and all output channels; where
// a scale has too few tiles for the machine, part of the channels.
//   depthwise: the tile's input with its halo, zeros outside the map, comes in chunks of 64 channels through cp.async
//     into two buffers, one chunk ahead. A thread makes 2 x 2 pixels (float: 2 x 1) of 4 channels: 16 shared reads of 4
//     channels serve 4 pixels' 36 taps, with the 9 x 4 weights in registers. The sums, rounded, are the rows of A.
//     Lanes lie along channels: no bank conflicts.
//   pointwise: per block of 128 output channels (64 where there are no more) the product (gemm.cuh), shift, X, ReLU,
//     stores. A stays; weights of up to 64 x 64 stay too, as long as the scale does; others stream, and begin to come
//     while the last chunk of the depthwise is computed.
// Halo and ring share their memory. Global memory: the input 1.56 times (float 1.88; stride 2: 1.13 and 1.2), the
// halo's share from L2; X, where added, from L2; the weights once per item, or once.
#pragma once
#include "depthwise_patch.cuh"
#include "gemm.cuh"
#include "sepconv.h"

namespace dynroute::cuda {

template <class T, int Width>
using SepconvTile = GemmTile<T, kSepconvWide * sepconv_high(sizeof(T)), Width, kSepconvThreads>;
static_assert(bytes_of_a<SepconvTile<__half, 64>>(64) == sepconv_a_bytes(64, 2) &&
                  bytes_of_a<SepconvTile<float, 64>>(64) == sepconv_a_bytes(64, 4),
              "the host knows A's memory");

// A work item, in shared memory: what all threads know alike needs no registers of each.
struct SepconvItem {
  SepconvStage stage;
  const void* from;  // the tile's first pixel: of the input,
  const void* add;   // of X, or null,
  void* to;          // of the output
  int scale, sample, x, y;
  int first, last;  // output channels
  int room;         // bytes before the room for halo and ring,
  int staying;      // and before the weights that stay
  SepconvRoom in;   // the room
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
    const int parts = sepconv_parts(listed * tiles, stage.pointwise, p.enough), here = listed * tiles * parts;
    if (at >= here) {
      at -= here;
      continue;
    }
    const int in_row = ceil_div(stage.w_out, kSepconvWide);
    const int part = at % parts, tile = at / parts % tiles, in_list = at / parts / tiles;
    const int sample = all ? in_list : p.row.samples[(kOpen * kScales + s) * p.n + in_list];
    const int x = tile % in_row * kSepconvWide, y = tile / in_row * sepconv_high(sizeof(T));
    const int n = stage.pointwise.n, blocks = sepconv_blocks(stage.pointwise), wide = sepconv_width(stage.pointwise);
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
    item.first = blocks * part / parts * wide;
    item.last = min(blocks * (part + 1) / parts * wide, n);
    item.room = sepconv_a_bytes(stage.pointwise.k_pad, sizeof(T));
    item.staying = shared_bytes() - sepconv_staying_bytes(stage.pointwise, sizeof(T));
    item.in = sepconv_room(stage.pointwise, stage.stride, sizeof(T), item.staying - item.room);
    item.stay = sepconv_weights_stay(stage.pointwise);
    item.fresh = item.stay && s != last_scale;
    item.number = number;
    return;
  }
}

// Where a chunk of the halo lies: the last one in the second buffer, the one before in the first.
template <class T>
__device__ inline T* halo_buffer(unsigned char* memory, const SepconvItem& item, int chunk) {
  const bool second = item.in.two && (ceil_div(item.stage.pointwise.k_pad, kSepconvChannels) - chunk) % 2;
  return reinterpret_cast<T*>(memory + item.room + (second ? item.in.second : 0));
}

// A thread's part of the copies of the tile's input, which are alike for all chunks of 64 channels: some pixels of the
// halo, 16 bytes of each. Nothing is read outside the map, where zeros belong, whatever the address.
template <class T, int kStride>
struct HaloCopies {
  static constexpr int kWide = sepconv_halo(kSepconvWide, kStride), kPixels = sepconv_halo_pixels(kStride, sizeof(T));
  static constexpr int kPerPixel = kSepconvChannels / kVector<T>, kStep = kSepconvThreads / kPerPixel;
  static constexpr int kCopies = ceil_div(kPixels, kStep), kFours = kSepconvChannels / 4;
  int offset[kCopies];  // within a tile 32 bits suffice
  unsigned inside;      // a bit for each

  __device__ explicit HaloCopies(const SepconvItem& item) {
    const int thread = thread_here(), first = thread / kPerPixel, c = item.stage.c_in, w = item.stage.w_in;
    int column = first % kWide - 1, row = first / kWide - 1;
    const int x0 = item.x * kStride, y0 = item.y * kStride;
    inside = 0;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      offset[i] = (row * w + column) * c + thread % kPerPixel * kVector<T>;
      inside |= unsigned(unsigned(x0 + column) < unsigned(w) && unsigned(y0 + row) < unsigned(item.stage.h_in)) << i;
      column += kStep % kWide, row += kStep / kWide;
      if (column >= kWide - 1) column -= kWide, ++row;
    }
  }
  // A chunk on its way into its buffer [pixels][64], and its depthwise weights [9][64] behind it.
  __device__ void fetch(unsigned char* memory, const SepconvItem& item, int chunk) const {
    const int thread = thread_here(), channel = chunk * kSepconvChannels, c = item.stage.c_in;
    const unsigned to = shared_address(halo_buffer<T>(memory, item, chunk));
    const T* const from = static_cast<const T*>(item.from) + channel;
    const bool any = channel + thread % kPerPixel * kVector<T> < c;
#pragma unroll
    for (int i = 0; i < kCopies; ++i)
      if ((i + 1) * kStep <= kPixels || thread / kPerPixel + i * kStep < kPixels)
        copy_async(to + (thread + i * kSepconvThreads) * 16, from + offset[i], any && inside >> i & 1);
    if (thread < 9 * kFours) {
      const int at = channel + thread % kFours * 4;
      copy_async(to + kPixels * kSepconvChannels * unsigned(sizeof(T)) + thread * 16,
                 item.stage.depthwise + thread / kFours * c + at, at < c);
    }
    commit_copies();
  }
};

// A [BM][k_pad] = depthwise of the tile, whose first chunk is on its way. The block has to meet before A is read.
// last(): what is asked for, in the number of groups of copies that it returns, while the last chunk is computed.
template <class T, int kStride, class Last>
__device__ inline void depthwise(unsigned char* memory, const SepconvItem& item, const HaloCopies<T, kStride>& copies,
                                 Last&& last) {
  const PatchPlace<T> patch(thread_here());
  const int& k_pad = item.stage.pointwise.k_pad;  // read where needed: a copy would be one more register
#pragma unroll 1
  for (int chunk = 0; chunk * kSepconvChannels < k_pad; ++chunk) {
    const int channel = chunk * kSepconvChannels + patch.group;  // of this thread the first
    const bool is_last = (chunk + 1) * kSepconvChannels >= k_pad;
    const bool ahead = kStride == 1 && item.in.two;
    if (ahead && !is_last) copies.fetch(memory, item, chunk + 1);
    const int newer = !ahead ? 0 : is_last ? last() : 1;
    wait_copies(newer);
    __syncthreads();
    const T* const here = halo_buffer<T>(memory, item, chunk);
    if (channel < k_pad) {
      const int lda = row_of_a<SepconvTile<T, 64>>(k_pad);
      depthwise_patch<T, kStride>(here, patch, reinterpret_cast<T*>(memory) + chunk * kSepconvChannels, lda);
    }
    if (is_last) continue;
    __syncthreads();
    if (!ahead) copies.fetch(memory, item, chunk + 1);
  }
}

// A thread's results of a block of output channels. Its pixels lie below each other.
template <class Tile>
struct OwnResults {
  using T = typename Tile::T;
  static constexpr int V = kVector<T>, kGroups = Tile::kColumns / V, kLines = Tile::kRowStep / kSepconvWide;
  static_assert(kLines * kSepconvWide == Tile::kRowStep);
  int at, pitch;  // from the tile's first value to the thread's, and to its next pixel's
  int channels;   // that there are, less the thread's first
  int inside;     // of its pixels

  __device__ OwnResults(const SepconvItem& item, int n, int thread) {
    const SepconvStage& stage = item.stage;
    const int first = Tile::row(0, thread), x = first % kSepconvWide, y = first / kSepconvWide, c = stage.pointwise.n;
    inside = item.x + x < stage.w_out ? ceil_div(stage.h_out - item.y - y, kLines) : 0;
    channels = c - n - Tile::column(0, thread);
    at = (y * stage.w_out + x) * c + n + Tile::column(0, thread), pitch = kLines * stage.w_out * c;
  }
  // Of the i-th pixel the j-th 16 bytes.
  __device__ bool is(int i, int j) const { return i < inside && j * V * Tile::kAcross < channels; }
  __device__ int offset(int i, int j) const { return at + i * pitch + j * V * Tile::kAcross; }
};

// X where the results go, asked for before the product, so that it is there behind it.
template <class Tile>
using Added = uint4[OwnResults<Tile>::kGroups][Tile::kRows];
template <class Tile>
__device__ inline void load_added(Added<Tile>& added, const OwnResults<Tile>& own, const SepconvItem& item) {
  const auto* const add = static_cast<const typename Tile::T*>(item.add);
  if (!add) return;
#pragma unroll
  for (int j = 0; j < OwnResults<Tile>::kGroups; ++j)
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i)
      if (own.is(i, j)) added[j][i] = __ldcg(reinterpret_cast<const uint4*>(add + own.offset(i, j)));
}

// shift, X, ReLU, stores.
template <class Tile>
__device__ inline void store_results(const typename Tile::Accumulators& sums, const Added<Tile>& added,
                                     const SepconvItem& item, int n, int thread) {
  using T = typename Tile::T;
  constexpr int V = kVector<T>;
  const OwnResults<Tile> own(item, n, thread);
  const bool add = item.add, relu = item.stage.relu;
  for_results<Tile>(
      sums, item.stage.pointwise, n,
      [&](int i, int j, int, int, float (&values)[V]) {
        if (!own.is(i, j)) return;
        if (add) {
          float more[V];
          unpack<T>(added[j][i], more);
#pragma unroll
          for (int e = 0; e < V; ++e) values[e] += more[e];
        }
        if (relu)
#pragma unroll
          for (float& value : values) value = dynroute::cuda::relu(value);
        store_global(static_cast<T*>(item.to) + own.offset(i, j), pack<T>(values));
      },
      thread);
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

template <class T>
__device__ inline T* weights_of(unsigned char* memory, const SepconvItem& item) {
  return reinterpret_cast<T*>(memory + item.staying);
}

// All of the item's output channels, of A, whose first weights are on their way.
template <class Tile>
__device__ inline void pointwise(unsigned char* memory, const SepconvItem& item, bool begun) {
  using T = typename Tile::T;
  const Matrix w = item.stage.pointwise;
  const int thread = thread_here();
  const PixelRows<Tile> a(reinterpret_cast<T*>(memory), row_of_a<Tile>(w.k_pad), thread);
  T* const ring = reinterpret_cast<T*>(memory + item.room);
  WeightStream<Tile> stream(w, item.first, item.last, 0, w.k_pad, ring, thread);
  if (begun) {
    for (int i = 0; i < item.in.ahead; ++i) stream.skip();
  } else {
    __syncthreads();  // the halo is read
    begin_ring(stream, item.in.ahead);
  }
  int buffer = 0;
#pragma unroll 1
  for (int n = item.first; n < item.last; n += Tile::BN) {
    typename Tile::Accumulators sums;
    clear(sums);
    Added<Tile> added;
    load_added<Tile>(added, OwnResults<Tile>(item, n, thread), item);
    multiply<Tile>(sums, a, stream, ring, item.in.ahead, buffer, thread);
    store_results<Tile>(sums, added, item, n, thread);
  }
}

// The same by weights that stay.
template <class Tile>
__device__ inline void pointwise_by_staying(unsigned char* memory, const SepconvItem& item) {
  using T = typename Tile::T;
  const int k_pad = item.stage.pointwise.k_pad, thread = thread_here();
  const PixelRows<Tile> a(reinterpret_cast<T*>(memory), row_of_a<Tile>(k_pad), thread);
  typename Tile::Accumulators sums;
  clear(sums);
  Added<Tile> added;
  load_added<Tile>(added, OwnResults<Tile>(item, 0, thread), item);
  __syncthreads();
#pragma unroll 1
  for (int k = 0; k < k_pad; k += Tile::BK)
    multiply_chunk<Tile>(sums, a, k, weights_of<T>(memory, item) + k * Tile::BN, thread);
  store_results<Tile>(sums, added, item, 0, thread);
}

template <class T, int kStride, class Tile>
__device__ inline void sepconv_by(unsigned char* memory, const SepconvItem& item,
                                  const HaloCopies<T, kStride>& copies) {
  depthwise<T, kStride>(memory, item, copies, [&] {
    WeightStream<Tile> stream(item.stage.pointwise, item.first, item.last, 0, item.stage.pointwise.k_pad,
                              reinterpret_cast<T*>(memory + item.room), thread_here());
    begin_ring(stream, item.in.ahead);
    return item.in.ahead;
  });
  if (Tile::BN == 64 && item.stay) pointwise_by_staying<Tile>(memory, item);
  else pointwise<Tile>(memory, item, kStride == 1 && item.in.two);
}

// `ahead` is called by one thread while the halo is on its way.
template <class T, int kStride, class Ahead>
__device__ inline void sepconv_strided(unsigned char* memory, const SepconvItem& item, Ahead&& ahead) {
  const HaloCopies<T, kStride> copies(item);
  copies.fetch(memory, item, 0);
  if (threadIdx.x == 0) ahead();
  if (sepconv_width(item.stage.pointwise) == 64) sepconv_by<T, kStride, SepconvTile<T, 64>>(memory, item, copies);
  else sepconv_by<T, kStride, SepconvTile<T, 128>>(memory, item, copies);
}

// One item, by the whole block, which has met since it was found, and since the memory was last used. kStride: the
// largest that stages have.
template <class T, int kStride, class Ahead>
__device__ inline void sepconv_item(const SepconvParams& p, const SepconvItem& item, unsigned char* memory,
                                    Ahead&& ahead) {
  if (item.fresh) {
    using Tile = SepconvTile<T, 64>;
    const Matrix& w = item.stage.pointwise;
    WeightStream<Tile> stream(w, 0, w.n, 0, w.k_pad, weights_of<T>(memory, item), thread_here());
    for (int k = 0; k < w.k_pad / Tile::BK; ++k) stream.fetch(k);
  }
  if (kStride == 1 || item.stage.stride == 1) sepconv_strided<T, 1>(memory, item, ahead);
  else sepconv_strided<T, kStride>(memory, item, ahead);
  if (threadIdx.x == 0) count_item<T>(p, item);
}

}  // namespace dynroute::cuda
