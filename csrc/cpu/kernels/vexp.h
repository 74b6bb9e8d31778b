// What a softmax needs beyond simd.h: the larger of two, exp and log of vectors, and lanes as integers. Written once
// for all targets, in the compiler's own operators on vectors.
#pragma once
#include <cmath>

#include "simd.h"

namespace dynroute::DYNROUTE_TARGET {

// Integers as wide as a vector's values, and as many.
template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
  using bits = uint32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
  using bits = uint64_t;
};
template <class T>
using Int = typename IntOf<T>::type;
template <class T>
struct IntLanes {
  typedef Int<T> Signed __attribute__((vector_size(Vec<T>::width * sizeof(T))));
  typedef typename IntOf<T>::bits Bits __attribute__((vector_size(Vec<T>::width * sizeof(T))));
};
template <class T>
using Ints = typename IntLanes<T>::Signed;
template <class T>
using Bits = typename IntLanes<T>::Bits;
template <class T>
using Lanes = decltype(Vec<T>::v);

template <class T>
DYNROUTE_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return {a.v - b.v};
}
template <class T>
DYNROUTE_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return {a.v / b.v};
}

// The larger of the two; b where one is NaN (NEON: NaN).
template <class T>
DYNROUTE_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
#if defined(DYNROUTE_TARGET_AVX512)
  return {_mm512_max_ps(a.v, b.v)};
#elif defined(DYNROUTE_TARGET_AVX2)
  return {_mm256_max_ps(a.v, b.v)};
#elif defined(DYNROUTE_TARGET_NEON)
  return {vmaxq_f32(a.v, b.v)};
#else
  return {a.v > b.v ? a.v : b.v};
#endif
}

template <class T>
DYNROUTE_INLINE Ints<T> load_ints(const Int<T>* p) {
  Ints<T> lanes;
  std::memcpy(&lanes, p, sizeof(lanes));
  return lanes;
}
// a where the mask's lane is all ones, 0 where it is all zeros.
template <class T>
DYNROUTE_INLINE Vec<T> where(Ints<T> mask, Vec<T> a) {
  return {(Lanes<T>)((Ints<T>)a.v & mask)};
}

// exp(x) for x <= 0, to 2 units in the last place; what lies below -87.3 is taken for it. NaN stays NaN.
// x = i ln 2 + r; the polynomial for |r| <= ln 2 / 2 is Cephes' expf's.
DYNROUTE_INLINE Vec<float> exp_of(Vec<float> x) {
  using V = Vec<float>;
  const V magic = V::set(12582912.f);  // 1.5 * 2^23: what is added is rounded to an integer in the sum's low bits
  x = maximum(V::set(-87.3f), x);
  const V shifted = fma(x, V::set(1.44269504f), magic), i = shifted - magic;
  // ln 2 in two parts, the first of so few bits that its product with i is exact
  const V r = fma(i, V::set(2.12194440e-4f), fma(i, V::set(-0.693359375f), x));
  V p = fma(V::set(1.9875691500e-4f), r, V::set(1.3981999507e-3f));
  p = fma(p, r, V::set(8.3334519073e-3f));
  p = fma(p, r, V::set(4.1665795894e-2f));
  p = fma(p, r, V::set(1.6666665459e-1f));
  p = fma(p, r, V::set(5.0000001201e-1f));
  p = fma(p, r * r, r) + V::set(1);
  const Bits<float> two = ((Bits<float>)shifted.v + 127u) << 23;  // 2^i: the magic's own bits are shifted out
  return {p.v * (Lanes<float>)two};
}

// log(x) for x >= 1 and finite, to 2 units in the last place. NaN stays NaN.
// x = 2^e (1 + f), 1 + f between the roots of 1/2 and 2; the polynomial is Cephes' logf's.
DYNROUTE_INLINE Vec<float> log_of(Vec<float> x) {
  using V = Vec<float>;
  const Bits<float> bits = (Bits<float>)x.v;
  const Ints<float> exponent = (Ints<float>)(bits - 0x3f3504f3u) >> 23;
  const V e = {(Lanes<float>)__builtin_convertvector(exponent, Lanes<float>)};
  const V f = V{(Lanes<float>)(bits - ((Bits<float>)exponent << 23))} - V::set(1), square = f * f;
  V p = fma(V::set(7.0376836292e-2f), f, V::set(-1.1514610310e-1f));
  p = fma(p, f, V::set(1.1676998740e-1f));
  p = fma(p, f, V::set(-1.2420140846e-1f));
  p = fma(p, f, V::set(1.4249322787e-1f));
  p = fma(p, f, V::set(-1.6668057665e-1f));
  p = fma(p, f, V::set(2.0000714765e-1f));
  p = fma(p, f, V::set(-2.4999993993e-1f));
  p = fma(p, f, V::set(3.3333331174e-1f));
  p = fma(e, V::set(-2.12194440e-4f), p * f * square);
  p = fma(V::set(-0.5f), square, p) + f;
  return fma(e, V::set(0.693359375f), p) + (x - x);
}

#if defined(DYNROUTE_TARGET_PORTABLE)
DYNROUTE_INLINE Vec<double> exp_of(Vec<double> x) {
  for (int i = 0; i < Vec<double>::width; ++i) x.v[i] = ::exp(x.v[i]);
  return x;
}
DYNROUTE_INLINE Vec<double> log_of(Vec<double> x) {
  for (int i = 0; i < Vec<double>::width; ++i) x.v[i] = ::log(x.v[i]);
  return x;
}
#endif

}  // namespace dynroute::DYNROUTE_TARGET
