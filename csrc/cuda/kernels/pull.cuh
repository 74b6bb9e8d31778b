// X from its sources: down_weight * down + keep_weight * keep + up_weight * bilinear_x2(up), added up in this order;
// the bilinear's weights are 1/4 and 3/4, first down the columns, then along the row, and the border is repeated. In
// float the bits are the CPU engine's. In float16 each step is rounded (depthwise.cuh), as torch rounds between its
// operators: errors are about the same.
//
// Unit of work: 2 x 2 pixels at even coordinates, one 16-byte group of channels. They share 3 x 3 pixels of `up`: 9
// loads for 4 results, where each by itself would need 16. All loads, up to 17 of 16 bytes, are on their way before the
// first is used.
#pragma once
#include <type_traits>

#include "depthwise.cuh"

namespace dynroute::cuda {

// One sample's. A source without weight is null, and not read.
template <class T>
struct XSources {
  using Word = WordOfTaps<T>;
  const T *down, *keep;  // [h, w, c]
  const T* up;           // [h/2, w/2, c]
  typename Word::Weight of_down, of_keep, of_up;
  int h, w, c;

  // By what the blend down the columns is too large: in float 3 here + above is one instruction, and a factor of 4
  // costs no bit. In float16 it might be too large a number.
  static constexpr float kScale = std::is_same_v<T, __half> ? 1 : 4;

  // A map without weight may be anything.
  __device__ XSources(const T* down_map, float down_weight, const T* keep_map, float keep_weight, const T* up_map,
                      float up_weight, int h, int w, int c)
      : down(down_weight != 0 ? down_map : nullptr),
        keep(keep_weight != 0 ? keep_map : nullptr),
        up(up_weight != 0 ? up_map : nullptr),
        of_down(Word::weight_of(down_weight)),
        of_keep(Word::weight_of(keep_weight)),
        of_up(Word::weight_of(up_weight / kScale)),
        h(h),
        w(w),
        c(c) {}
};

// Where 2 x 2 pixels lie in a map: pixel i at at(i), values from the map's first. Beyond the map the last row and
// column are repeated.
struct Quad {
  int first, right, below;
  __device__ Quad(int h, int w, int c, int y, int x, int channel)
      : first((min(y, h - 1) * w + min(x, w - 1)) * c + channel),
        right(x + 1 < w ? c : 0),
        below(y + 1 < h ? w * c : 0) {}
  __device__ int at(int i) const { return first + (i / 2 ? below : 0) + (i % 2 ? right : 0); }
};

// out[2 * dy + dx]: pixels (y + dy, x + dx), which lie at `quad`.
template <class T>
__device__ inline void pull(const XSources<T>& in, int y, int x, int channel, const Quad& quad, uint4 (&out)[4]) {
  uint4 down[4] = {}, keep[4] = {}, up[3][3] = {};
  if (in.down) {
#pragma unroll
    for (int i = 0; i < 4; ++i) down[i] = load_group(in.down + quad.at(i));
  }
  if (in.keep) {
#pragma unroll
    for (int i = 0; i < 4; ++i) keep[i] = load_group(in.keep + quad.at(i));
  }
  if (in.up) {
    // `up` ends before an odd side does: there the last row and column are repeated once more
    const int h = in.h / 2, w = in.w / 2, row = min(y / 2, h - 1), column = min(x / 2, w - 1), line = w * in.c;
    const int middle = (row * w + column) * in.c + channel;
    const int rows[3] = {middle - (row > 0 && row == y / 2 ? line : 0), middle, middle + (row + 1 < h ? line : 0)};
    const int columns[3] = {column > 0 && column == x / 2 ? -in.c : 0, 0, column + 1 < w ? in.c : 0};
#pragma unroll
    for (int i = 0; i < 3; ++i)
#pragma unroll
      for (int j = 0; j < 3; ++j) up[i][j] = load_group(in.up + (rows[i] + columns[j]));
  }

  // Word by word, as a word's sums are few registers where they are floats.
  using Word = WordOfTaps<T>;
  const auto near = Word::weight_of(0.75f), far = Word::weight_of(0.25f), three = Word::weight_of(3);
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    Word sums[4];
    if (in.down) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = taps_of_word<T>(down[i], word).times(in.of_down);
    }
    if (in.keep) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i].add(taps_of_word<T>(keep[i], word), in.of_keep);
    }
    if (in.up) {
      Word blended[2][3];  // between rows, for both rows of X
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const Word middle = taps_of_word<T>(up[1][j], word);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Word other = taps_of_word<T>(up[2 * i][j], word);
          blended[i][j] = XSources<T>::kScale == 1 ? middle.times(near) : other;
          if (XSources<T>::kScale == 1) blended[i][j].add(other, far);
          else blended[i][j].add(middle, three);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Word blend = blended[i / 2][1].times(near);
        blend.add(blended[i / 2][i % 2 * 2], far);
        sums[i].add(blend, in.of_up);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) word_of(out[i], word) = sums[i].word(0);
  }
}

}  // namespace dynroute::cuda
