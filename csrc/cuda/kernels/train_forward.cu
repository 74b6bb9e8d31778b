// train_forward: a stage's raw outputs, [depthwise ->] product, for up to two products of listed samples, and what its
// BatchNorm's statistics are made of.
//
// Work: items are tiles of 8 x 8 output pixels (float: 8 x 4) and all output channels, or part of them where tiles are
// few; blocks of 256 threads take every gridDim.x-th one. A is the source's values, or their depthwise, which is made
// 64 channels at a time from a halo that lies where the ring of weights comes afterwards; the product is gemm.cuh's.
// Statistics: of each tile and channel a pivot and the sums of distances from it and of their squares, of the values as
// they are stored, straight from the accumulators. Memory: the source 1.56 times behind a depthwise, else once; the raw
// map once.
#include "train_columns.cuh"
#include "train_tiles.cuh"

namespace dynroute::cuda {

template <class T, int Width>
__device__ inline void forward_item(const TrainForwardJob& job, const TrainPlace& at, unsigned char* memory) {
  using Tile = TrainTile<T, Width>;
  const Matrix& w = job.product;
  const TrainSource& source = job.source;
  T* const a = reinterpret_cast<T*>(memory);
  const int lda = row_of_a<Tile>(w.k_pad), room = train_room(w, job.stride, job.taps, sizeof(T));
  unsigned char* const behind = memory + sepconv_a_bytes(w.k_pad, sizeof(T));
  if (!job.taps) {
    fill_rows<T>(a, lda, source.c, w.k_pad, at.y, at.x, job.h, job.w, [&](int channel) {
      return [values = SourceValues<T>(source, at.sample, channel), stride = job.stride](int y, int x) {
        return values(y * stride, x * stride);
      };
    });
  } else {
#pragma unroll 1
    for (int channel = 0; channel < w.k_pad; channel += kSepconvChannels) {
      const int more = w.k_pad - channel;
      if (job.stride == 1)
        filter_halo<T, 1>(behind, source, job.taps, at.sample, at.y, at.x, channel, more, a + channel, lda);
      else filter_halo<T, 2>(behind, source, job.taps, at.sample, at.y, at.x, channel, more, a + channel, lda);
      __syncthreads();
    }
  }
  float* const totals = reinterpret_cast<float*>(behind + room);
  T* const raw = static_cast<T*>(job.raw) + (int64_t(at.sample) * job.h * job.w + at.y * job.w + at.x) * w.n;
  multiply_rows<Tile>(memory, room, w, at.first, at.last, [&](typename Tile::Accumulators& sums, int n) {
    constexpr int V = kVector<T>;
    const int thread = thread_here();
    const unsigned inside = rows_inside<Tile>(at.y, at.x, job.h, job.w, thread);
#pragma unroll
    for (int j = 0; j < Tile::kColumns; j += V)
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i) {
        float values[V];
#pragma unroll
        for (int e = 0; e < V; ++e) values[e] = Tile::value(sums, i, j + e);
        const uint4 stored = pack<T>(values);
        const int row = Tile::row(i, thread), channel = n + Tile::column(j, thread);
        if (inside >> i & 1 && channel < w.n)
          store_global(raw + (row / kSepconvWide * job.w + row % kSepconvWide) * w.n + channel, stored);
        unpack<T>(stored, values);
#pragma unroll
        for (int e = 0; e < V; ++e) Tile::set(sums, i, j + e, values[e]);
      }
    // the pivot is the first pixel's value, so that sums are of values about as large as the channel's deviation
    float* const pivots = totals + 2 * Tile::kWarpRows * Tile::BN;
    if (Tile::row(0, thread) == 0)
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j) pivots[Tile::column(j, thread)] = Tile::value(sums, 0, j);
    __syncthreads();
    float pivot[Tile::kColumns], found[2][Tile::kColumns];
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) pivot[j] = pivots[Tile::column(j, thread)];
    tile_columns<2, Tile>(
        [&](int q, int i, int j) {
          const float apart = inside >> i & 1 ? Tile::value(sums, i, j) - pivot[j] : 0.f;
          return q == 0 ? apart : apart * apart;
        },
        totals, found, thread);
    if (Tile::row(0, thread) > 0) return;  // all rows' threads know the same
    float* const partials = job.partials + int64_t(at.tile) * kTileSums * w.n;
#pragma unroll
    for (int j = 0; j < Tile::kColumns; j += 4) {
      const int channel = n + Tile::column(j, thread);
      if (channel >= w.n) continue;
      const auto store = [&](int row, const float* from) {
        *reinterpret_cast<float4*>(partials + row * w.n + channel) = {from[j], from[j + 1], from[j + 2], from[j + 3]};
      };
      store(0, pivot), store(1, found[0]), store(2, found[1]);
    }
  });
}

template <class T>
__device__ inline void train_forward(const TrainForwardParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  for_items<T>(p.job, p.n, p.enough, [&](const TrainForwardJob& job, const TrainPlace& place) {
    if (sepconv_width(job.product) == 64) forward_item<T, 64>(job, place, memory);
    else forward_item<T, 128>(job, place, memory);
  });
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_forward, TrainForwardParams, kTrainThreads, kTrainResident)
