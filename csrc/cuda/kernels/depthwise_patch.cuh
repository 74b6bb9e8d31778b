// The depthwise 3x3 of a tile of 8 x 8 output pixels (float: 8 x 4), 64 channels at a time, by 256 threads: a thread
// makes 2 x 2 pixels (float: 2 x 1) of 4 channels, from the tile's input with its halo, in shared memory.
#pragma once
#include "depthwise.cuh"
#include "sepconv.h"

namespace dynroute::cuda {

constexpr int kGroup = 4;  // channels of a thread
constexpr int kGroups = kSepconvChannels / kGroup;

template <class T>
struct Patch {  // output pixels of a thread
  static constexpr int kHigh = 2, kWide = kIsFloat<T> ? 1 : 2;
  static constexpr int kInRow = kSepconvWide / kWide;
  static_assert(kSepconvWide * sepconv_high(sizeof(T)) / (kHigh * kWide) * kGroups == kSepconvThreads,
                "every thread has one patch of a chunk");
};

// Four values in shared memory.
template <class T>
__device__ inline Taps<T, kGroup> load_four(const T* from) {
  if constexpr (kIsFloat<T>) {
    const uint4 words = load_group(from);
    return Taps<T, kGroup>::of_words({words.x, words.y, words.z, words.w});
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    return Taps<T, kGroup>::of_words({words.x, words.y});
  }
}
template <class T>
__device__ inline void store_four(T* to, const Taps<T, kGroup>& values) {
  if constexpr (kIsFloat<T>) store_group(to, {values.word(0), values.word(1), values.word(2), values.word(3)});
  else *reinterpret_cast<uint2*>(to) = {values.word(0), values.word(1)};
}

// A thread's patch of a chunk: its first pixel in the tile, and its first channel.
template <class T>
struct PatchPlace {
  int x, y, group;
  __device__ explicit PatchPlace(int thread) {
    const int patch = thread / kGroups;
    x = patch % Patch<T>::kInRow * Patch<T>::kWide, y = patch / Patch<T>::kInRow * Patch<T>::kHigh;
    group = thread % kGroups * kGroup;
  }
};

// The depthwise of a thread's patch, from a chunk of the halo [pixels][64], with its weights [9][64] behind it, into
// rows of A that are lda values apart; `a`: the chunk's first channel of the tile's first pixel.
template <class T, int kStride>
__device__ inline void depthwise_patch(const T* halo, const PatchPlace<T>& patch, T* a, int lda) {
  using P = Patch<T>;
  constexpr int halo_wide = sepconv_halo(kSepconvWide, kStride), halo_pixels = sepconv_halo_pixels(kStride, sizeof(T));
  Taps<T, kGroup> weight[9];
  const float* from_weight = reinterpret_cast<const float*>(halo + halo_pixels * kSepconvChannels) + patch.group;
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) {
    const float4 value = *reinterpret_cast<const float4*>(from_weight + tap * kSepconvChannels);
    weight[tap] = Taps<T, kGroup>::of_floats({value.x, value.y, value.z, value.w});
  }
  Taps<T, kGroup> sum[P::kHigh][P::kWide];
  const T* from = halo + (patch.y * halo_wide + patch.x) * kStride * kSepconvChannels + patch.group;
#pragma unroll
  for (int y = 0; y < sepconv_halo(P::kHigh, kStride); ++y)
#pragma unroll
    for (int x = 0; x < sepconv_halo(P::kWide, kStride); ++x) {
      const Taps<T, kGroup> value = load_four(from + (y * halo_wide + x) * kSepconvChannels);
#pragma unroll
      for (int i = 0; i < P::kHigh; ++i)
#pragma unroll
        for (int j = 0; j < P::kWide; ++j) {
          const int ky = y - i * kStride, kx = x - j * kStride;
          if (ky < 0 || ky > 2 || kx < 0 || kx > 2) continue;
          sum[i][j].add(value, weight[ky * 3 + kx]);
        }
    }
  T* const to = a + (patch.y * kSepconvWide + patch.x) * lda + patch.group;
#pragma unroll
  for (int i = 0; i < P::kHigh; ++i)
#pragma unroll
    for (int j = 0; j < P::kWide; ++j) store_four(to + (i * kSepconvWide + j) * lda, sum[i][j]);
}

}  // namespace dynroute::cuda
