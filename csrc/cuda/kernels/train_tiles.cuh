// Tiles of training's products: where an item lies, and how A, the product's left operand, is made of a source, behind
// a depthwise or not.
#pragma once
#include "sepconv_item.cuh"
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

template <class T, int Width>
using TrainTile = SepconvTile<T, Width>;

// An item of a product: a tile of a listed sample, and part of the output channels.
struct TrainPlace {
  int sample, y, x;  // the tile's first pixel
  int tile;          // of all listed samples'
  int first, last;   // output channels
};
// An item, in shared memory: what all threads know alike needs no registers of each.
template <class Job>
struct TrainItem {
  Job job;
  TrainPlace place;
  bool is;  // there are more
};
// Item number `at` of a job; false, and `at` less the job's, where it has no such.
template <class T>
__device__ inline bool find_place(const TrainTiles& of, int n, int enough, int64_t& at, TrainPlace& place) {
  if (!of.product.weight) return false;
  const int listed = samples_of(of.samples, n), tiles = train_tiles(of.h, of.w, sizeof(T));
  const int parts = sepconv_parts(listed * tiles, of.product, enough);
  const int64_t here = int64_t(listed) * tiles * parts;
  if (at >= here) {
    at -= here;
    return false;
  }
  const int part = int(at % parts), tile = int(at / parts), in_row = ceil_div(of.w, kSepconvWide),
            inside = tile % tiles;
  const int blocks = sepconv_blocks(of.product), wide = sepconv_width(of.product);
  place.sample = sample_of(of.samples, tile / tiles), place.tile = tile;
  place.y = inside / in_row * sepconv_high(sizeof(T)), place.x = inside % in_row * kSepconvWide;
  place.first = blocks * part / parts * wide, place.last = min(blocks * (part + 1) / parts * wide, of.product.n);
  return true;
}
// Calls each(job, place) for this block's items of a launch.
template <class T, class Job, class Each>
__device__ inline void for_items(const Job (&jobs)[2], int n, int enough, Each&& each) {
  __shared__ TrainItem<Job> item;
  for (int64_t number = blockIdx.x;; number += gridDim.x) {
    if (threadIdx.x == 0) {
      int64_t at = number;
      item.is = false;
#pragma unroll
      for (const Job& job : jobs)
        if (!item.is && find_place<T>(tiles_of(job), n, enough, at, item.place)) item.job = job, item.is = true;
    }
    __syncthreads();  // the item is known, and what the last one had in memory has been read
    if (!item.is) return;
    each(item.job, item.place);
    __syncthreads();
  }
}

// A [rows][lda] of a tile of h x w pixels: make(channel) is asked for a group's values, these for each pixel.
template <class T, class Make>
__device__ inline void fill_rows(T* a, int lda, int channels, int padded_channels, int y0, int x0, int h, int w,
                                 Make&& make) {
  constexpr int V = kVector<T>, kRows = kSepconvWide * sepconv_high(sizeof(T)), kAcross = 8;
  const int thread = thread_here();
#pragma unroll 1
  for (int channel = thread % kAcross * V; channel < padded_channels; channel += kAcross * V) {
    const bool any = channel < channels;
    const auto values = make(any ? channel : 0);
#pragma unroll  // what belongs to the channels is read once for all rows
    for (int i = 0; i < kRows; i += kTrainThreads / kAcross) {
      const int row = i + thread / kAcross, y = y0 + row / kSepconvWide, x = x0 + row % kSepconvWide;
      store_group(a + row * lda + channel, any && y < h && x < w ? values(y, x) : uint4{});
    }
  }
}

// The input pixels under a tile whose first output pixel is (y0, x0), with zeros outside the map: 64 channels from
// `channel` on, [pixels][64]; behind them the taps [9][64].
template <class T, int kStride>
__device__ inline void fill_halo(unsigned char* memory, const TrainSource& source, const float* taps, int sample,
                                 int y0, int x0, int channel) {
  constexpr int V = kVector<T>, kWide = sepconv_halo(kSepconvWide, kStride);
  constexpr int kPixels = sepconv_halo_pixels(kStride, sizeof(T)), kAcross = kSepconvChannels / V;
  T* const halo = reinterpret_cast<T*>(memory);
  const int thread = thread_here(), own = thread % kAcross * V;
  const bool any = channel + own < source.c;
  const SourceValues<T> values(source, sample, any ? channel + own : 0);
#pragma unroll 2
  for (int i = thread / kAcross; i < kPixels; i += kTrainThreads / kAcross) {
    const int y = y0 * kStride - 1 + i / kWide, x = x0 * kStride - 1 + i % kWide;
    const bool is = any && unsigned(y) < unsigned(source.h) && unsigned(x) < unsigned(source.w);
    store_group(halo + i * kSepconvChannels + own, is ? values(y, x) : uint4{});
  }
  float* const to = reinterpret_cast<float*>(halo + kPixels * kSepconvChannels);
#pragma unroll 1
  for (int i = thread; i < 9 * kSepconvChannels; i += kTrainThreads) {
    const int at = channel + i % kSepconvChannels;
    to[i] = at < source.c ? taps[i / kSepconvChannels * source.c + at] : 0;
  }
}

// A tile's depthwise of 64 channels, of which `channels` are stored, into rows `lda` values apart. The block meets
// before.
template <class T, int kStride>
__device__ inline void filter_halo(unsigned char* memory, const TrainSource& source, const float* taps, int sample,
                                   int y0, int x0, int channel, int channels, T* to, int lda) {
  fill_halo<T, kStride>(memory, source, taps, sample, y0, x0, channel);
  __syncthreads();
  const PatchPlace<T> patch(thread_here());
  if (patch.group < channels) depthwise_patch<T, kStride>(reinterpret_cast<const T*>(memory), patch, to, lda);
}

// The product of A, which lies at the beginning of `memory`, for an item's output channels: each(sums, n) gets the
// results of channels from n on. The block has met since the ring's memory, behind A, was used for something else.
template <class Tile, class Each>
__device__ inline void multiply_rows(unsigned char* memory, int room, const Matrix& w, int first, int last,
                                     Each&& each) {
  using T = typename Tile::T;
  T* const ring = reinterpret_cast<T*>(memory + sepconv_a_bytes(w.k_pad, sizeof(T)));
  const int ahead = chunks_ahead(room / chunk_bytes(Tile::BN) - 1);
  const PixelRows<Tile> rows(reinterpret_cast<T*>(memory), row_of_a<Tile>(w.k_pad), thread_here());
  WeightStream<Tile> stream(w, first, last, 0, w.k_pad, ring, thread_here());
  begin_ring(stream, ahead);
  int buffer = 0;
#pragma unroll 1
  for (int n = first; n < last; n += Tile::BN) {
    typename Tile::Accumulators sums;
    clear(sums);
    multiply<Tile>(sums, rows, stream, ring, ahead, buffer, thread_here());
    each(sums, n);
  }
}

// A thread's rows of a tile that are pixels of a map of h x w, a bit for each.
template <class Tile>
__device__ inline unsigned rows_inside(int y0, int x0, int h, int w, int thread) {
  unsigned inside = 0;
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int row = Tile::row(i, thread);
    inside |= unsigned(y0 + row / kSepconvWide < h && x0 + row % kSepconvWide < w) << i;
  }
  return inside;
}

}  // namespace dynroute::cuda
