// One vector type per target. DYNROUTE_TARGET is the name of the namespace a kernel file is compiled into, once per
// instruction set with that set's flags. Everything a kernel file instantiates must live in that namespace or be
// inlined: a std:: template emitted here could be merged with the baseline's and run on a machine without these
// instructions.
#pragma once
#include <cstdint>

#include "guard.h"

#if defined(DYNROUTE_TARGET_AVX512) || defined(DYNROUTE_TARGET_AVX2)
#include <immintrin.h>
#elif defined(DYNROUTE_TARGET_NEON)
#include <arm_neon.h>
#endif

#define DYNROUTE_ALWAYS __attribute__((always_inline))
#define DYNROUTE_INLINE inline DYNROUTE_ALWAYS
#define DYNROUTE_UNROLL _Pragma("GCC unroll 32")

namespace dynroute::DYNROUTE_TARGET {

template <class T>
DYNROUTE_INLINE T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
DYNROUTE_INLINE T most(T a, T b) {
  return a < b ? b : a;
}

// fma(a, b, c) = a * b + c, fused wherever the target can; relu keeps NaN, as torch does.
template <class T>
struct Vec;

#if defined(DYNROUTE_TARGET_AVX512)
template <>
struct Vec<float> {
  static constexpr int width = 16;
  __m512 v;
  static DYNROUTE_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static DYNROUTE_INLINE Vec load(const float* p, int n) {
    guard::reads(p, size_t(n) * 4);
    return {_mm512_maskz_loadu_ps(mask(n), p)};
  }
  DYNROUTE_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  DYNROUTE_INLINE void store(float* p, int n) const {
    guard::writes(p, size_t(n) * 4);
    _mm512_mask_storeu_ps(p, mask(n), v);
  }
  static DYNROUTE_INLINE Vec set(float a) { return {_mm512_set1_ps(a)}; }
  static DYNROUTE_INLINE __mmask16 mask(int n) { return __mmask16((1u << n) - 1); }
};
DYNROUTE_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
DYNROUTE_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
DYNROUTE_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
DYNROUTE_INLINE Vec<float> relu(Vec<float> a) { return {_mm512_max_ps(_mm512_setzero_ps(), a.v)}; }

#elif defined(DYNROUTE_TARGET_AVX2)
template <>
struct Vec<float> {
  static constexpr int width = 8;
  __m256 v;
  static DYNROUTE_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static DYNROUTE_INLINE Vec load(const float* p, int n) {
    guard::reads(p, size_t(n) * 4);
    return {_mm256_maskload_ps(p, mask(n))};
  }
  DYNROUTE_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  DYNROUTE_INLINE void store(float* p, int n) const {
    guard::writes(p, size_t(n) * 4);
    _mm256_maskstore_ps(p, mask(n), v);
  }
  static DYNROUTE_INLINE Vec set(float a) { return {_mm256_set1_ps(a)}; }
  static DYNROUTE_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};
DYNROUTE_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
DYNROUTE_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.v, b.v)}; }
DYNROUTE_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
DYNROUTE_INLINE Vec<float> relu(Vec<float> a) { return {_mm256_max_ps(_mm256_setzero_ps(), a.v)}; }

#elif defined(DYNROUTE_TARGET_NEON)
template <>
struct Vec<float> {
  static constexpr int width = 4;
  float32x4_t v;
  static DYNROUTE_INLINE Vec load(const float* p) { return {vld1q_f32(p)}; }
  static DYNROUTE_INLINE Vec load(const float* p, int n) {
    float lane[4] = {};
    for (int i = 0; i < n; ++i) lane[i] = p[i];
    return load(lane);
  }
  DYNROUTE_INLINE void store(float* p) const { vst1q_f32(p, v); }
  DYNROUTE_INLINE void store(float* p, int n) const {
    float lane[4];
    store(lane);
    for (int i = 0; i < n; ++i) p[i] = lane[i];
  }
  static DYNROUTE_INLINE Vec set(float a) { return {vdupq_n_f32(a)}; }
};
DYNROUTE_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
DYNROUTE_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {vmulq_f32(a.v, b.v)}; }
DYNROUTE_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {vaddq_f32(a.v, b.v)}; }
DYNROUTE_INLINE Vec<float> relu(Vec<float> a) { return {vmaxq_f32(a.v, vdupq_n_f32(0))}; }

#else
// The compiler's own vectors, for float and double: no fused multiply-add (the file is compiled with
// -ffp-contract=off), so that main loops, tails and edges round alike.
template <class T>
struct Vec {
  static constexpr int width = 4;
  typedef T Lanes __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T))));
  Lanes v;
  static DYNROUTE_INLINE Vec load(const T* p) { return {*reinterpret_cast<const Lanes*>(p)}; }
  static DYNROUTE_INLINE Vec load(const T* p, int n) {
    Lanes lanes = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return {lanes};
  }
  DYNROUTE_INLINE void store(T* p) const { *reinterpret_cast<Lanes*>(p) = v; }
  DYNROUTE_INLINE void store(T* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
  static DYNROUTE_INLINE Vec set(T a) { return {Lanes{a, a, a, a}}; }
};
template <class T>
DYNROUTE_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return {a.v * b.v + c.v};
}
template <class T>
DYNROUTE_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return {a.v * b.v};
}
template <class T>
DYNROUTE_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return {a.v + b.v};
}
template <class T>
DYNROUTE_INLINE Vec<T> relu(Vec<T> a) {
  typename Vec<T>::Lanes zero = {};
  return {a.v < zero ? zero : a.v};
}
#endif

// Calls body(c, load, store) for each vector of [0, channels); for a last partial one, load and store touch only what
// is there.
template <class T, class Body>
DYNROUTE_INLINE void for_channels(int channels, const Body& body) {
  constexpr int width = Vec<T>::width;
  int c = 0;
  for (; c + width <= channels; c += width)
    body(
        c, [](const T* p) DYNROUTE_ALWAYS { return Vec<T>::load(p); },
        [](T* p, Vec<T> v) DYNROUTE_ALWAYS { v.store(p); });
  if (int n = channels - c)
    body(
        c, [n](const T* p) DYNROUTE_ALWAYS { return Vec<T>::load(p, n); },
        [n](T* p, Vec<T> v) DYNROUTE_ALWAYS { v.store(p, n); });
}

}  // namespace dynroute::DYNROUTE_TARGET
