// X from its sources: down_weight * down + keep_weight * keep + up_weight * bilinear_x2(up), each step an FMA in this
// order; the bilinear's weights are 1/4 and 3/4, first down the columns, then along the row, and the border is
// repeated. The CPU's kernels do the same operations in the same order.
//
// Unit of work: 2 x 2 pixels at even coordinates, one 16-byte group of channels. They share 3 x 3 pixels of `up`: 9
// loads for 4 results, where each by itself would need 16. All loads, up to 17 of 16 bytes, are on their way before the
// first is used.
#pragma once
#include "primitives.cuh"

namespace dynroute::cuda {

// One sample's; a source with weight 0 is not read.
template <class T>
struct XSources {
  const T *down, *keep;  // [h, w, c]
  const T* up;           // [h/2, w/2, c]
  float down_weight, keep_weight, up_weight;
  int h, w, c;
};

// One word of a group as floats.
template <class T>
__device__ inline void widen(unsigned word, float (&values)[4 / sizeof(T)]) {
  if constexpr (kIsFloat<T>) {
    values[0] = __uint_as_float(word);
  } else {
    const float2 pair = to_float2(word, T());
    values[0] = pair.x, values[1] = pair.y;
  }
}
template <class T>
__device__ inline unsigned narrow(const float (&values)[4 / sizeof(T)]) {
  if constexpr (kIsFloat<T>) return __float_as_uint(values[0]);
  else return from_float2(values[0], values[1], T());
}
__device__ inline unsigned word_of(const uint4& group, int i) {
  return i == 0 ? group.x : i == 1 ? group.y : i == 2 ? group.z : group.w;
}

// x[2 * dy + dx]: pixels (y + dy, x + dx). Beyond the map the last row and column are repeated.
template <class T>
__device__ inline void pull(const XSources<T>& in, int y, int x, int channel, uint4 (&out)[4]) {
  uint4 down[4] = {}, keep[4] = {}, up[3][3] = {};
  {
    const int rows[2] = {min(y, in.h - 1) * in.w, min(y + 1, in.h - 1) * in.w};
    const int columns[2] = {min(x, in.w - 1), min(x + 1, in.w - 1)};
    int at[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) at[i] = (rows[i / 2] + columns[i % 2]) * in.c + channel;
    if (in.down_weight != 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) down[i] = load_group(in.down + at[i]);
    }
    if (in.keep_weight != 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) keep[i] = load_group(in.keep + at[i]);
    }
  }
  if (in.up_weight != 0) {
    const int h = in.h / 2, w = in.w / 2;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int row = max(min(y / 2 + i - 1, h - 1), 0) * w;
#pragma unroll
      for (int j = 0; j < 3; ++j)
        up[i][j] = load_group(in.up + (row + max(min(x / 2 + j - 1, w - 1), 0)) * in.c + channel);
    }
  }

  constexpr int kPerWord = 4 / sizeof(T);
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    float sum[4][kPerWord] = {}, value[kPerWord];
    if (in.down_weight != 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        widen<T>(word_of(down[i], word), value);
#pragma unroll
        for (int k = 0; k < kPerWord; ++k) sum[i][k] = in.down_weight * value[k];
      }
    }
    if (in.keep_weight != 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        widen<T>(word_of(keep[i], word), value);
#pragma unroll
        for (int k = 0; k < kPerWord; ++k) sum[i][k] = fmaf(in.keep_weight, value[k], sum[i][k]);
      }
    }
    if (in.up_weight != 0) {
      float blended[2][3][kPerWord];  // between rows, for both rows of X
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        float above[kPerWord], here[kPerWord], below[kPerWord];
        widen<T>(word_of(up[0][j], word), above);
        widen<T>(word_of(up[1][j], word), here);
        widen<T>(word_of(up[2][j], word), below);
#pragma unroll
        for (int k = 0; k < kPerWord; ++k) {
          blended[0][j][k] = fmaf(0.75f, here[k], 0.25f * above[k]);
          blended[1][j][k] = fmaf(0.75f, here[k], 0.25f * below[k]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int k = 0; k < kPerWord; ++k) {
          const float side = blended[i / 2][i % 2 * 2][k], here = blended[i / 2][1][k];
          sum[i][k] = fmaf(in.up_weight, fmaf(0.25f, side, 0.75f * here), sum[i][k]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned bits = narrow<T>(sum[i]);
      if (word == 0) out[i].x = bits;
      else if (word == 1) out[i].y = bits;
      else if (word == 2) out[i].z = bits;
      else out[i].w = bits;
    }
  }
}

}  // namespace dynroute::cuda
