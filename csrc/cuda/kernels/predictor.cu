// The decoder's last convolution: 3x3, padding 1, with bias, to float logits [h * w][classes].
//
// Work: a block of 128 threads per tile of 8 lines x 16 columns of pixels (float: 4 x 16), times 32 classes at a time:
// 19 classes fill them better than 64 would. The tile and its border of one pixel, 10 x 18, are copied once and stay
// for all nine taps and all classes: global memory is asked for 1.41x the map, of which the overlap comes from L2.
// The product walks over k = (tap, channel) in one pass, 16 bytes of a pixel at a time; such a group lies within a tap
// as channels are a multiple of 8, and a table in shared memory says how far from the pixel: any number of channels is
// one loop. Where k_pad is more than 9 c, the table points at the zeros behind a pixel's channels.
// A mma's 16 rows of A are one line of the tile, at one distance: an odd multiple of 16 bytes, no bank conflicts.
// At 64 channels 42 KB of shared memory (17 ring or results, 26 tile): four blocks per multiprocessor on H100, two on
// sm_86.
#include "pointwise.cuh"
#include "predictor.h"

namespace dynroute::cuda {

template <class T>
__device__ inline void predictor(const PredictorParams& params) {
  constexpr int kWidth = 32, kVec = kVector<T>;  // output channels of a block
  constexpr int kColumns = kPredictorColumns, kLines = predictor_lines(kIsFloat<T>), kRow = kColumns + 2;
  using S = SmallTile<T, kWidth>;
  static_assert(S::BM == kLines * kColumns, "a tile of pixels");
  static_assert(least_ring_bytes(kWidth) <= predictor_ring_bytes(kIsFloat<T>), "the tile lies behind");
  static_assert(S::BM * (kWidth + 1) * 4 <= predictor_ring_bytes(kIsFloat<T>), "results lie there too");

  extern __shared__ __align__(16) unsigned char memory[];
  T* const ring = reinterpret_cast<T*>(memory);
  float* const results = reinterpret_cast<float*>(memory);                           // [BM][kWidth + 1]
  T* const tile = reinterpret_cast<T*>(memory + predictor_ring_bytes(kIsFloat<T>));  // [kLines + 2][kRow][pitch]
  const Matrix& w = params.weight;
  const int c = params.c, pitch = predictor_pitch(c, kVec);
  int* const offsets = reinterpret_cast<int*>(tile + (kLines + 2) * kRow * pitch);  // [k_pad / kVec]

  const int sample = int(blockIdx.x) / params.tiles, at = blockIdx.x - sample * params.tiles;
  const int y0 = at / params.across * kLines, x0 = at % params.across * kColumns;
  const T* const x = static_cast<const T*>(params.x) + int64_t(sample) * params.h * params.w * c;

  for (int pixel = threadIdx.x / 8; pixel < (kLines + 2) * kRow; pixel += kThreads / 8) {
    const int line = y0 - 1 + pixel / kRow, column = x0 - 1 + pixel % kRow;
    const bool inside = line >= 0 && line < params.h && column >= 0 && column < params.w;
    const T* const from = x + (inside ? (int64_t(line) * params.w + column) * c : 0);
    for (int i = threadIdx.x % 8 * kVec; i < pitch; i += 8 * kVec) {
      const bool valid = inside && i < c;
      copy_async(tile + pixel * pitch + i, from + (valid ? i : 0), valid);
    }
  }
  commit_copies();
  for (int group = threadIdx.x; group < w.k_pad / kVec; group += kThreads) {
    const int tap = group / params.groups, channel = (group - tap * params.groups) * kVec;
    offsets[group] = tap < 9 ? (tap / 3 * kRow + tap % 3) * pitch + channel : c;
  }

  // as PixelRows: where the thread's rows of A begin, and how far from there, by the table, its group of k lies
  const int lane = threadIdx.x % 32, group_of_lane = S::kCores ? 0 : lane / 16;
  unsigned rows[S::kReads];
#pragma unroll
  for (int i = 0; i < S::kReads; ++i) {
    const int pixel = S::kCores ? S::row(i) : S::warp_row() * S::kTall + lane % 16 + 16 * i;
    rows[i] = shared_address(tile + (pixel / kColumns * kRow + pixel % kColumns) * pitch);
  }
  const auto a = [&](int i, int k) { return rows[i] + offsets[k / kVec + group_of_lane] * unsigned(sizeof(T)); };
  float* const out = params.out + (int64_t(sample) * params.h + y0) * params.w * w.n + int64_t(x0) * w.n;
  for (int n = 0; n < w.n; n += kWidth) {
    typename S::Accumulators sums;
    clear(sums);
    if (n > 0) __syncthreads();  // results of the block before are read
    WeightStream<S> stream(w, n, min(n + kWidth, w.n), 0, w.k_pad, ring);
    begin_ring(stream, kLeastAhead);
    int buffer = 0;
    multiply<S>(sums, a, stream, ring, kLeastAhead, buffer);
    // through shared memory: classes are any number, and a pixel's lie behind those of the one before
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S::kRows; ++i)
#pragma unroll
      for (int j = 0; j < S::kColumns; ++j) results[S::row(i) * (kWidth + 1) + S::column(j)] = S::value(sums, i, j);
    __syncthreads();
    const int channel = threadIdx.x % 32;
    if (n + channel >= w.n) continue;
    const float shift = w.shift[n + channel];
    for (int pixel = threadIdx.x / 32; pixel < S::BM; pixel += kThreads / 32) {
      const int line = pixel / kColumns, column = pixel % kColumns;
      if (y0 + line < params.h && x0 + column < params.w)
        out[(int64_t(line) * params.w + column) * w.n + n + channel] = results[pixel * (kWidth + 1) + channel] + shift;
    }
  }
  if (threadIdx.x == 0) {
    const int64_t pixels = min(kLines, params.h - y0) * min(kColumns, params.w - x0);
    count(params.io->sample_macs + sample * kSampleParts + kDecoderPart, pixels * 9 * c * w.n);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(predictor, PredictorParams, kThreads, 4)
