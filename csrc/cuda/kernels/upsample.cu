// From the small logits [h * w][classes] to full size: bilinear x4 (align_corners = False, the border repeated),
// cropped, as float planes, or as the class of the largest, or both. Labels alone never store a plane.
//
// What it costs is writing the planes: 159 MB of 1024 x 2048 x 19 floats, and 10 MB to read.
// Work: a block of 128 threads per tile of 4 lines x 32 columns of small pixels. The tile and a border of one pixel
// pass through shared memory, up to 32 classes at a time, [6][34][pitch]: 16 KB for 19 classes. A warp has a line, a
// lane a column: for each class it reads 3 x 3 values and makes 4 x 4 outputs, four 16-byte stores which the warp's
// lanes continue to 512 contiguous bytes each. They are streamed (evict first): nobody reads them here. The largest
// values, and their classes as bytes, stay in 16 + 4 registers over all classes. At most 80 registers, six blocks per
// multiprocessor.
//
// Lines of planes begin at a multiple of 16 bytes only if out_w is one of 4 (io->logits itself does). Else each store
// takes up to three values from the lane to the right, so that it is aligned all the same; only the ends of lines are
// written one by one.
#include "primitives.cuh"
#include "upsample.h"

namespace dynroute::cuda {

// Along a line: the four outputs over the middle one of three neighbours.
__device__ inline void widen(float left, float middle, float right, float (&out)[4]) {
  out[0] = fmaf(0.375f, left, 0.625f * middle);
  out[1] = fmaf(0.125f, left, 0.875f * middle);
  out[2] = fmaf(0.125f, right, 0.875f * middle);
  out[3] = fmaf(0.375f, right, 0.625f * middle);
}

// A lane's four values of neighbouring columns, the first of them at `to`, where `left` columns are left of the line.
__device__ inline void store_aligned(float* to, int left, const float (&values)[4]) {
  if (left > 0) __stcs(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
}
// The same where lines begin anywhere; whole warps call it. Each lane's values move up to the next multiple of 16
// bytes, the same way for all lanes, and the last lane's are the next tile's first.
__device__ inline void store_unaligned(float* to, int left, bool first_of_line, const float (&values)[4]) {
  const int before = int(-(reinterpret_cast<uintptr_t>(to) / 4) & 3);  // columns
  float moved[4] = {values[0], values[1], values[2], values[3]};
#pragma unroll
  for (int step = 0; step < 3; ++step) {
    if (step >= before) break;
    if (first_of_line && step < left) __stcs(to + step, moved[0]);
    const float next = __shfl_down_sync(~0u, values[step], 1);
    moved[0] = moved[1], moved[1] = moved[2], moved[2] = moved[3], moved[3] = next;
  }
  if (threadIdx.x % 32 == 31) return;
  to += before, left -= before;
  if (left >= 4) __stcs(reinterpret_cast<float4*>(to), make_float4(moved[0], moved[1], moved[2], moved[3]));
  else
#pragma unroll
    for (int i = 0; i < 3; ++i)
      if (i < left) __stcs(to + i, moved[i]);
}

template <class T>
__device__ inline void upsample(const UpsampleParams& params) {
  constexpr int kLines = kUpsampleLines, kRow = kUpsampleColumns + 2, kWarps = kThreads / 32;
  static_assert(kWarps == kLines, "a warp per line");
  extern __shared__ float tile[];  // [kLines + 2][kRow][pitch]
  const int pitch = upsample_pitch(params.classes);
  const int sample = int(blockIdx.x) / params.tiles, at = blockIdx.x - sample * params.tiles;
  const int y0 = at / params.across * kLines, x0 = at % params.across * upsample_step(params.out_w);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int line = 4 * (y0 + warp), column = 4 * (x0 + lane), left = params.out_w - column;  // of the output
  const bool aligned = params.out_w % 4 == 0;
  const float* const x = params.x + int64_t(sample) * params.h * params.w * params.classes;
  const int64_t plane = int64_t(params.out_h) * params.out_w, corner = int64_t(line) * params.out_w + column;
  float* const planes = params.io->logits ? params.io->logits + sample * params.classes * plane + corner : nullptr;
  uint8_t* const labels = params.io->labels ? params.io->labels + sample * plane + corner : nullptr;

  float best[4][4];
  unsigned best_class[4] = {0, 0, 0, 0};  // a byte per column
#pragma unroll
  for (int i = 0; i < 16; ++i) best[i / 4][i % 4] = -INFINITY;

  for (int first = 0; first < params.classes; first += kUpsampleClasses) {
    const int classes = min(params.classes - first, kUpsampleClasses);
    if (first > 0) __syncthreads();
    for (int i = 0; i < kLines + 2; ++i) {
      const float* const from = x + min(max(y0 - 1 + i, 0), params.h - 1) * params.w * params.classes + first + lane;
      float* const to = tile + i * kRow * pitch + lane;
      if (lane < classes)
        for (int j = warp; j < kRow; j += kWarps)
          copy_async_word(to + j * pitch, from + min(max(x0 - 1 + j, 0), params.w - 1) * params.classes);
    }
    commit_copies();
    wait_copies<0>();
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < classes; ++k) {
      float wide[3][4];
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const float* const from = tile + ((warp + i) * kRow + lane) * pitch + k;
        widen(from[0], from[pitch], from[2 * pitch], wide[i]);
      }
      float out[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float four[4];
        widen(wide[0][i], wide[1][i], wide[2][i], four);
#pragma unroll
        for (int j = 0; j < 4; ++j) out[j][i] = four[j];
      }
      if (planes) {
        float* const to = planes + (first + k) * plane;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (line + j >= params.out_h) break;
          if (aligned) store_aligned(to + j * params.out_w, left, out[j]);
          else store_unaligned(to + j * params.out_w, left, column == 0, out[j]);
        }
      }
      if (labels) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const unsigned with[4] = {0x3214, 0x3240, 0x3410,
                                    0x4210};  // __byte_perm's selectors: byte i is the new class
#pragma unroll
          for (int j = 0; j < 4; ++j)
            if (out[j][i] > best[j][i]) {
              best[j][i] = out[j][i];
              best_class[j] = __byte_perm(best_class[j], first + k, with[i]);
            }
        }
      }
    }
  }
  if (!labels || (!aligned && lane == 31)) return;
  __builtin_assume(__isGlobal(labels));
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (line + j >= params.out_h) break;
    uint8_t* const to = labels + j * params.out_w;
    if (aligned && left > 0) *reinterpret_cast<unsigned*>(to) = best_class[j];
    if (!aligned)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < left) to[i] = uint8_t(best_class[j] >> 8 * i);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(upsample, UpsampleParams, kThreads, 6)
