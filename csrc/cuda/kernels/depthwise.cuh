// Values as the depthwise computes with them: float16 in pairs, two to an instruction, each step rounded; bfloat16,
// whose eight bits would not bear that, and float in float.
#pragma once
#include "primitives.cuh"

namespace dynroute::cuda {

template <class T, int N>
struct Taps {
  static constexpr int kWords = N * int(sizeof(T)) / 4;
  float value[N] = {};

  static __device__ Taps of_words(const unsigned (&words)[kWords]) {
    Taps taps;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kIsFloat<T>) {
        taps.value[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = to_float2(words[i], T());
        taps.value[2 * i] = pair.x, taps.value[2 * i + 1] = pair.y;
      }
    }
    return taps;
  }
  static __device__ Taps of_floats(const float (&floats)[N]) {
    Taps taps;
#pragma unroll
    for (int i = 0; i < N; ++i) taps.value[i] = floats[i];
    return taps;
  }
  __device__ void add(const Taps& x, const Taps& weight) {
#pragma unroll
    for (int i = 0; i < N; ++i) value[i] = fmaf(x.value[i], weight.value[i], value[i]);
  }
  // Rounded, as it is stored.
  __device__ unsigned word(int i) const {
    if constexpr (kIsFloat<T>) return __float_as_uint(value[i]);
    else return from_float2(value[2 * i], value[2 * i + 1], T());
  }
};

template <int N>
struct Taps<__half, N> {
  static constexpr int kWords = N / 2;
  __half2 pair[kWords] = {};

  static __device__ Taps of_words(const unsigned (&words)[kWords]) {
    Taps taps;
#pragma unroll
    for (int i = 0; i < kWords; ++i) taps.pair[i] = *reinterpret_cast<const __half2*>(&words[i]);
    return taps;
  }
  static __device__ Taps of_floats(const float (&floats)[N]) {
    Taps taps;
#pragma unroll
    for (int i = 0; i < kWords; ++i) taps.pair[i] = __floats2half2_rn(floats[2 * i], floats[2 * i + 1]);
    return taps;
  }
  __device__ void add(const Taps& x, const Taps& weight) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) pair[i] = __hfma2(x.pair[i], weight.pair[i], pair[i]);
  }
  __device__ unsigned word(int i) const { return *reinterpret_cast<const unsigned*>(&pair[i]); }
};

}  // namespace dynroute::cuda
