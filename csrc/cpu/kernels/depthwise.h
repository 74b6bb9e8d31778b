// Depthwise 3x3 of a run of pixels of one output row, into a panel for the pointwise product.
// Unit of work: P neighbouring pixels x one vector of channels in registers, so that an input is loaded once for three
// outputs (stride 1). A pixel's nine taps are always added in the order ky, kx; taps outside the map are left out.
#pragma once
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {

// inputs: up to three rows of a map, each [w_in][channels]; null is a row outside the map
template <class T>
struct Rows {
  const T* row[3];
};

// P pixels, one vector of channels from c on; load knows how many there are.
template <class T, int P, int Stride, class Load>
DYNROUTE_INLINE void depthwise_sums(const Rows<T>& in, int x_in, int kx_begin, int kx_end, int channels,
                                    const T* weights /* [9][channels] */, int c, Load load, Vec<T> (&sum)[P]) {
  DYNROUTE_UNROLL for (int i = 0; i < P; ++i) sum[i] = Vec<T>::set(0);
  for (int ky = 0; ky < 3; ++ky) {
    if (!in.row[ky]) continue;
    const T* row = in.row[ky] + int64_t(x_in) * channels + c;
    const T* w = weights + ky * 3 * channels + c;
    if constexpr (P == 1) {
      for (int kx = kx_begin; kx < kx_end; ++kx)
        sum[0] = fma(load(row + int64_t(kx) * channels), load(w + kx * channels), sum[0]);
    } else {
      Vec<T> tap[3], x[(P - 1) * Stride + 3];
      DYNROUTE_UNROLL for (int kx = 0; kx < 3; ++kx) tap[kx] = load(w + kx * channels);
      DYNROUTE_UNROLL for (int i = 0; i < (P - 1) * Stride + 3; ++i) x[i] = load(row + int64_t(i) * channels);
      DYNROUTE_UNROLL for (int i = 0; i < P; ++i) {
        DYNROUTE_UNROLL for (int kx = 0; kx < 3; ++kx) sum[i] = fma(x[i * Stride + kx], tap[kx], sum[i]);
      }
    }
  }
}

template <class T, int P, int Stride>
DYNROUTE_INLINE void depthwise_pixels(const Rows<T>& in, int x_in, int kx_begin, int kx_end, int channels,
                                      const T* weights, T* out, int64_t out_stride) {
  for_channels<T>(channels, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
    Vec<T> sum[P];
    depthwise_sums<T, P, Stride>(in, x_in, kx_begin, kx_end, channels, weights, c, load, sum);
    DYNROUTE_UNROLL for (int i = 0; i < P; ++i) store(out + i * out_stride + c, sum[i]);
  });
}

#if defined(DYNROUTE_TARGET_AVX512) || defined(DYNROUTE_TARGET_NEON)
template <int Stride>
constexpr int kPixels = Stride == 1 ? 8 : 4;
#else
template <int Stride>
constexpr int kPixels = Stride == 1 ? 4 : 2;
#endif

// Output pixels [x, x + count) of a row. What blocks of P leave over is covered by one more that starts earlier and
// makes some pixels again, to the same bits.
template <class T, int Stride>
DYNROUTE_INLINE void depthwise_run(const Rows<T>& in, int w_in, int pad, int channels, const T* weights, int x,
                                   int count, T* out, int64_t out_stride) {
  constexpr int P = kPixels<Stride>;
  const int end = x + count;
  out -= x * out_stride;
  const auto single = [&](int at) DYNROUTE_ALWAYS {
    const int x_in = at * Stride - pad;
    depthwise_pixels<T, 1, Stride>(in, x_in, max(0, -x_in), min(3, w_in - x_in), channels, weights,
                                   out + at * out_stride, out_stride);
  };
  for (; x < end && x * Stride < pad; ++x) single(x);
  int inner_end = end;
  while (inner_end > x && (inner_end - 1) * Stride - pad + 3 > w_in) --inner_end;
  if (inner_end - x >= P)
    for (; x < inner_end; x += P) {
      x = min(x, inner_end - P);
      depthwise_pixels<T, P, Stride>(in, x * Stride - pad, 0, 3, channels, weights, out + x * out_stride, out_stride);
    }
  for (; x < end; ++x) single(x);
}

}  // namespace dynroute::DYNROUTE_TARGET
