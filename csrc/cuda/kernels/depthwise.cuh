// Values as depthwise, bilinear and weighted sums compute with them: float16 in pairs, two to an instruction, each step
// rounded; bfloat16, whose eight bits would not bear that, and float in float.
#pragma once
#include "primitives.cuh"

namespace dynroute::cuda {

template <class T, int N>
struct Taps {
  static constexpr int kWords = N * int(sizeof(T)) / 4;
  float value[N] = {};

  static __device__ Taps of_words(const unsigned (&words)[kWords]) {
    Taps made;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kIsFloat<T>) {
        made.value[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = to_float2(words[i], T());
        made.value[2 * i] = pair.x, made.value[2 * i + 1] = pair.y;
      }
    }
    return made;
  }
  static __device__ Taps of_floats(const float (&floats)[N]) {
    Taps made;
#pragma unroll
    for (int i = 0; i < N; ++i) made.value[i] = floats[i];
    return made;
  }
  __device__ void add(const Taps& x, const Taps& weight) {
#pragma unroll
    for (int i = 0; i < N; ++i) value[i] = fmaf(x.value[i], weight.value[i], value[i]);
  }
  // One weight for all values.
  using Weight = float;
  static __device__ Weight weight_of(float weight) { return weight; }
  __device__ void add(const Taps& x, Weight weight) {
#pragma unroll
    for (int i = 0; i < N; ++i) value[i] = fmaf(x.value[i], weight, value[i]);
  }
  __device__ Taps times(Weight weight) const {
    Taps made;
#pragma unroll
    for (int i = 0; i < N; ++i) made.value[i] = value[i] * weight;
    return made;
  }
  // Rounded, as it is stored.
  __device__ unsigned word(int i) const {
    if constexpr (kIsFloat<T>) return __float_as_uint(value[i]);
    else return from_float2(value[2 * i], value[2 * i + 1], T());
  }
  __device__ uint4 group() const { return {word(0), word(1), word(2), word(3)}; }
};

template <int N>
struct Taps<__half, N> {
  static constexpr int kWords = N / 2;
  __half2 pair[kWords] = {};

  static __device__ Taps of_words(const unsigned (&words)[kWords]) {
    Taps made;
#pragma unroll
    for (int i = 0; i < kWords; ++i) made.pair[i] = *reinterpret_cast<const __half2*>(&words[i]);
    return made;
  }
  static __device__ Taps of_floats(const float (&floats)[N]) {
    Taps made;
#pragma unroll
    for (int i = 0; i < kWords; ++i) made.pair[i] = __floats2half2_rn(floats[2 * i], floats[2 * i + 1]);
    return made;
  }
  __device__ void add(const Taps& x, const Taps& weight) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) pair[i] = __hfma2(x.pair[i], weight.pair[i], pair[i]);
  }
  using Weight = __half2;
  static __device__ Weight weight_of(float weight) { return __float2half2_rn(weight); }
  __device__ void add(const Taps& x, Weight weight) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) pair[i] = __hfma2(x.pair[i], weight, pair[i]);
  }
  __device__ Taps times(Weight weight) const {
    Taps made;
#pragma unroll
    for (int i = 0; i < kWords; ++i) made.pair[i] = __hmul2(pair[i], weight);
    return made;
  }
  __device__ unsigned word(int i) const { return *reinterpret_cast<const unsigned*>(&pair[i]); }
  __device__ uint4 group() const { return {word(0), word(1), word(2), word(3)}; }
};

// A group of 16 bytes, or one word of it.
template <class T>
__device__ inline Taps<T, kVector<T>> taps(const uint4& group) {
  return Taps<T, kVector<T>>::of_words({group.x, group.y, group.z, group.w});
}
template <class T>
using WordOfTaps = Taps<T, 4 / int(sizeof(T))>;
__device__ inline unsigned word_of(const uint4& group, int i) {
  return i == 0 ? group.x : i == 1 ? group.y : i == 2 ? group.z : group.w;
}
__device__ inline unsigned& word_of(uint4& group, int i) {
  return i == 0 ? group.x : i == 1 ? group.y : i == 2 ? group.z : group.w;
}
template <class T>
__device__ inline WordOfTaps<T> taps_of_word(const uint4& group, int i) {
  return WordOfTaps<T>::of_words({word_of(group, i)});
}

}  // namespace dynroute::cuda
