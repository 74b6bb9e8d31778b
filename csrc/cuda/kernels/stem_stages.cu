// Both separable stages of the stem in one pass, so that what lies between them, the network's largest map, never
// leaves the chip: ReLU(pw(dw)) at stride 1, then at stride 2.
//
// Work: a block of 256 threads per tile of 8 columns x 8 rows (float: 4) of the second stage's results. Its input, 19 x
// 20 pixels, comes by cp.async while the second stage of the tile before is computed; the first stage makes 17 x 18
// pixels into shared memory as T, zeros outside the map; the second takes its taps from there. Stages are the fused
// cell's (cell_stage.cuh): a warp's depthwise results are its product's left operand without leaving registers. Weights
// of both stay in shared memory. The first stage makes 1.2 times the pixels that are wanted (17 x 18 for 16 x 16), and
// reads its input 1.4 times, mostly from L2; as two passes of sepconv what lies between is written once and read 1.13
// times, and each multiply-accumulate takes twice the instructions.
// Machine: at most 128 registers, and 110 KB at 64 channels: two blocks to a multiprocessor.
#include "cell_stage.cuh"
#include "stem_stages.h"

namespace dynroute::cuda {

// In shared memory: what all threads know alike needs no registers of each.
struct StemPlace {
  int tile, sample, y0, x0;
};
static_assert(2 * sizeof(StemPlace) == kStemHead);
__device__ inline StemPlace stem_place(const StemStagesParams& p, int tile, int rows) {
  const int row = tile / p.across, sample = row / p.down;
  return {tile, sample, (row - sample * p.down) * rows, (tile - row * p.across) * kStemWide};
}

template <class T, int K>
__device__ inline void stem_stages_of(const StemStagesParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int V = kVector<T>, kGroups = K / V, kRun = cell_run(K, sizeof(T));
  constexpr int kMidRows = stem_mid_rows(K, sizeof(T)), kRows = stem_rows(K, sizeof(T));
  static_assert(kStemBands * kStemMidWide <= 8 * (kStemThreads / 32), "a warp has one unit of 8 runs");
  StemPlace* const places = reinterpret_cast<StemPlace*>(memory);
  T* const weights = reinterpret_cast<T*>(memory + kStemHead);
  float* const depthwise = reinterpret_cast<float*>(weights + 2 * K * K);
  float* const shifts = depthwise + 2 * 9 * K;
  T* const mid = reinterpret_cast<T*>(shifts + 2 * K);  // [kMidRows][kStemMidWide][K]
  T* const x = mid + kMidRows * kStemMidWide * K;       // [kMidRows + 2][kStemXWide][K]
  const int width = p.pointwise[0].k, c = p.pointwise[1].n;
  for (int i = 0; i < 2; ++i)
    fetch_stage_weights<T, K>(weights + i * K * K, depthwise + i * 9 * K, shifts + i * K, p.pointwise[i],
                              p.depthwise[i]);
  const auto fetch = [&](int tile, StemPlace& place) {
    const StemPlace at = stem_place(p, tile, kRows);
    if (threadIdx.x == 0) place = at;
    if (at.sample >= p.n) return;
    const T* const from = static_cast<const T*>(p.x) + int64_t(at.sample) * p.h_in * p.w_in * width;
    fetch_halo<T, K, kStemXWide>(x, from, p.h_in, p.w_in, width, 2 * at.y0 - 2, 2 * at.x0 - 2, kMidRows + 2);
    commit_copies();
  };

  fetch(blockIdx.x, places[0]);
  const StemPlace& at = places[0];
  for (;;) {
    wait_copies<0>();
    __syncthreads();
    if (at.sample >= p.n) return;
    cell_stage<T, K, kRun, kStemMidWide>(x, kStemBands, weights, depthwise, shifts, [&](int row, int column) {
      const int y = 2 * at.y0 - 1 + row, x_in = 2 * at.x0 - 1 + column;
      const int h = unsigned(x_in) < unsigned(p.w_in) ? p.h_in : 0;
      // of the pixel, its groups' change of places in the lower bits
      const int first = (row * kStemMidWide + column) * K + cell_swap<kGroups>(column / 2) * V;
      int inside = 0;  // a bit for each pixel of the run: outside the map it is zero
#pragma unroll
      for (int i = 0; i < kRun; ++i) inside |= int(unsigned(y + i) < unsigned(h)) << i;
      return [=](int out, int channel, float (&values)[V]) {
        const unsigned mask = -(inside >> out & 1);
        uint4 group = convert_relu<T>(values);
        group.x &= mask, group.y &= mask, group.z &= mask, group.w &= mask;
        store_group(mid + ((first ^ channel) + out * kStemMidWide * K), group);
      };
    });
    __syncthreads();
    fetch(at.tile + gridDim.x, places[1]);
    const int rows = min(kRows, p.h_out - at.y0), columns = min(kStemWide, p.w_out - at.x0);
    cell_stage<T, K, kStemRun2, kStemWide, 2>(
        mid, kRows / kStemRun2, weights + K * K, depthwise + 9 * K, shifts + K, [&](int row, int column) {
          T* const to =
              static_cast<T*>(p.out) + ((int64_t(at.sample) * p.h_out + at.y0 + row) * p.w_out + at.x0 + column) * c;
          const int left = column < columns ? rows - row : 0, line = p.w_out * c;
          return [=](int out, int channel, float (&values)[V]) {
            if (out < left && channel < c) store_global(to + out * line + channel, convert_relu<T>(values));
          };
        });
    if (threadIdx.x == kStemThreads - 32) {  // of the last warp, which has the least to do
      // own: a tile's 2 x 2 pixels for each of its results; made: one row and column more, before them
      const int own = min(2 * rows, p.h_in - 2 * at.y0) * min(2 * columns, p.w_in - 2 * at.x0);
      const int high = min(2 * at.y0 + 2 * rows, p.h_in) - max(2 * at.y0 - 1, 0);
      const int wide = min(2 * at.x0 + 2 * columns, p.w_in) - max(2 * at.x0 - 1, 0);
      const int64_t first = int64_t(width) * (9 + width), second = int64_t(width) * (9 + c);
      int64_t* const macs = p.io->sample_macs + at.sample * kSampleParts;
      count(macs + kStemPart, own * first + rows * columns * second);
      count(macs + kHaloPart, (high * wide - own) * first);
    }
    __syncthreads();  // all have done with the tile
    if (threadIdx.x == 0) places[0] = places[1];
  }
}

template <class T>
__device__ inline void stem_stages(const StemStagesParams& p) {
  if (stem_stages_channels(p.pointwise[0], p.pointwise[1]) == 32) stem_stages_of<T, 32>(p);
  else stem_stages_of<T, 64>(p);
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(stem_stages, StemStagesParams, kStemThreads, kStemStagesResident)
