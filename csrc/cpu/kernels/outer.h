// The gradient of a product's weights: sum[i][j] += rows of a, transposed, times rows of b.
// Unit of work: MR x NV vectors of a tile's own sum in registers over its pixels; a tile's pixels lie in two panels in
// L2, and 64 channels of b's in L1, which every row of the sum reads.
#pragma once
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {

template <class T, int MR, int NV>
DYNROUTE_INLINE void outer_block(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int m, T* sum,
                                 int64_t sum_stride, int columns, bool first) {
  using V = Vec<T>;
  V total[MR][NV];
  const bool whole = columns >= NV * V::width;
  const auto lanes = [&](int j) { return min(max(columns - j * V::width, 0), V::width); };
  DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) {
    DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) total[i][j] = V::set(0);
  }
  for (int p = 0; p < m; ++p, a += a_stride, b += b_stride) {
    V row[NV];
    DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) row[j] = V::load(b + j * V::width);
    DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) {
      const V value = V::set(a[i]);
      DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) total[i][j] = fma(value, row[j], total[i][j]);
    }
  }
  DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) {
    DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) {
      T* to = sum + i * sum_stride + j * V::width;
      if (first && whole) total[i][j].store(to);
      else if (first) total[i][j].store(to, lanes(j));
      else if (whole) (V::load(to) + total[i][j]).store(to);
      else (V::load(to, lanes(j)) + total[i][j]).store(to, lanes(j));
    }
  }
}

template <class T, int NV>
DYNROUTE_INLINE void outer_columns(const T* a, int64_t a_stride, int a_channels, const T* b, int64_t b_stride, int m,
                                   T* sum, int64_t sum_stride, int columns, bool first) {
  int i = 0;
  for (; i + 6 <= a_channels; i += 6)
    outer_block<T, 6, NV>(a + i, a_stride, b, b_stride, m, sum + i * sum_stride, sum_stride, columns, first);
  for (; i + 2 <= a_channels; i += 2)
    outer_block<T, 2, NV>(a + i, a_stride, b, b_stride, m, sum + i * sum_stride, sum_stride, columns, first);
  for (; i < a_channels; ++i)
    outer_block<T, 1, NV>(a + i, a_stride, b, b_stride, m, sum + i * sum_stride, sum_stride, columns, first);
}

// a [m, a_channels], b [m, b_channels], rows apart by their strides and readable up to whole vectors; sum [a_channels]
// [b_channels]. first: `sum` holds nothing yet.
template <class T>
void add_outer(const T* a, int64_t a_stride, int a_channels, const T* b, int64_t b_stride, int b_channels, int m,
               T* sum, bool first = false) {
#if defined(DYNROUTE_TARGET_AVX512)
  constexpr int kWide = 4;
#else
  constexpr int kWide = 2;
#endif
  constexpr int width = Vec<T>::width;
  int j = 0;
  for (; j + kWide * width <= b_channels; j += kWide * width)
    outer_columns<T, kWide>(a, a_stride, a_channels, b + j, b_stride, m, sum + j, b_channels, kWide * width, first);
  for (; j < b_channels; j += width)
    outer_columns<T, 1>(a, a_stride, a_channels, b + j, b_stride, m, sum + j, b_channels, b_channels - j, first);
}

}  // namespace dynroute::DYNROUTE_TARGET
