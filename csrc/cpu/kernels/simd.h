// One vector type per target. DYNROUTE_TARGET is the name of the namespace a kernel file is compiled into, once per
// instruction set with that set's flags. Everything a kernel file instantiates must live in that namespace or be
// inlined: a std:: template emitted here could be merged with the baseline's and run on a machine without these
// instructions.
#pragma once
#include <cstdint>
#include <cstring>

#include "guard.h"
#include "jobs.h"

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
DYNROUTE_INLINE T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
DYNROUTE_INLINE T max(T a, T b) {
  return a < b ? b : a;
}

// fma(a, b, c) = a * b + c, fused wherever the target can; relu keeps NaN, as torch does. where_positive(a, b): b where
// a is above 0, else 0.
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
DYNROUTE_INLINE Vec<float> where_positive(Vec<float> a, Vec<float> b) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_GT_OQ), b.v)};
}

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
DYNROUTE_INLINE Vec<float> where_positive(Vec<float> a, Vec<float> b) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_GT_OQ), b.v)};
}

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
DYNROUTE_INLINE Vec<float> where_positive(Vec<float> a, Vec<float> b) {
  return {vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(a.v, vdupq_n_f32(0)), vreinterpretq_u32_f32(b.v)))};
}

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
template <class T>
DYNROUTE_INLINE Vec<T> where_positive(Vec<T> a, Vec<T> b) {
  typename Vec<T>::Lanes zero = {};
  return {a.v > zero ? b.v : zero};
}
#endif

// bfloat16 values widen exactly and are rounded to nearest, ties to even, when stored; NaN stays NaN.
#if defined(DYNROUTE_TARGET_AVX512)
DYNROUTE_INLINE Vec<float> load_bf16(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
DYNROUTE_INLINE void store_bf16(bf16* p, Vec<float> v) {
  const __m512i bits = _mm512_castps_si512(v.v);
  const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v.v, v.v, _CMP_UNORD_Q);
  const __m512i safe = _mm512_mask_set1_epi32(rounded, nan, 0x7fc00000);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(safe, 16)));
}
#elif defined(DYNROUTE_TARGET_AVX2)
DYNROUTE_INLINE Vec<float> load_bf16(const bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
DYNROUTE_INLINE void store_bf16(bf16* p, Vec<float> v) {
  const __m256i bits = _mm256_castps_si256(v.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v.v, v.v, _CMP_UNORD_Q));
  const __m256i safe = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
  const __m256i high = _mm256_srli_epi32(safe, 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
#else
DYNROUTE_INLINE Vec<float> load_bf16(const bf16* p) {
  float lane[Vec<float>::width];
  for (int i = 0; i < Vec<float>::width; ++i) {
    const uint32_t bits = uint32_t(p[i].bits) << 16;
    std::memcpy(&lane[i], &bits, 4);
  }
  return Vec<float>::load(lane);
}
DYNROUTE_INLINE void store_bf16(bf16* p, Vec<float> v) {
  float lane[Vec<float>::width];
  v.store(lane);
  for (int i = 0; i < Vec<float>::width; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &lane[i], 4);
    bits += 0x7fff + (bits >> 16 & 1);
    p[i].bits = lane[i] != lane[i] ? 0x7fc0 : uint16_t(bits >> 16);
  }
}
#endif

// Loads and stores of whole vectors and of their first n lanes, whatever a map is stored as.
template <class T>
DYNROUTE_INLINE Vec<T> load(const T* p) {
  return Vec<T>::load(p);
}
template <class T>
DYNROUTE_INLINE Vec<T> load(const T* p, int n) {
  return Vec<T>::load(p, n);
}
template <class T>
DYNROUTE_INLINE void store(T* p, Vec<T> v) {
  v.store(p);
}
template <class T>
DYNROUTE_INLINE void store(T* p, Vec<T> v, int n) {
  v.store(p, n);
}
DYNROUTE_INLINE Vec<float> load(const bf16* p) { return load_bf16(p); }
DYNROUTE_INLINE Vec<float> load(const bf16* p, int n) {
  bf16 lane[Vec<float>::width] = {};
  for (int i = 0; i < n; ++i) lane[i] = p[i];
  return load_bf16(lane);
}
DYNROUTE_INLINE void store(bf16* p, Vec<float> v) { store_bf16(p, v); }
DYNROUTE_INLINE void store(bf16* p, Vec<float> v, int n) {
  bf16 lane[Vec<float>::width];
  store_bf16(lane, v);
  for (int i = 0; i < n; ++i) p[i] = lane[i];
}

// Calls body(c, load, store) for each vector of [0, channels); for a last partial one, load and store touch only what
// is there.
template <class T, class Body>
DYNROUTE_INLINE void for_channels(int channels, const Body& body) {
  constexpr int width = Vec<T>::width;
  int c = 0;
  for (; c + width <= channels; c += width)
    body(
        c, [](const auto* p) DYNROUTE_ALWAYS { return load(p); },
        [](auto* p, Vec<T> v) DYNROUTE_ALWAYS { store(p, v); });
  if (int n = channels - c)
    body(
        c, [n](const auto* p) DYNROUTE_ALWAYS { return load(p, n); },
        [n](auto* p, Vec<T> v) DYNROUTE_ALWAYS { store(p, v, n); });
}

}  // namespace dynroute::DYNROUTE_TARGET
