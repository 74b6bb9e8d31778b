// Weights into the kernels' layouts (jobs.h). dynroute/runtime/weights/layouts.py does the same in torch, once per
// network.
#pragma once
#include <algorithm>
#include <cstring>

#include "jobs.h"

namespace dynroute {

inline int64_t panels_size(int64_t n, int64_t k) { return round_up(n, kPanel) * k; }

// One panel: columns [16 * panel, 16 * panel + 16), each times its scale. Whole panels go in blocks of 4 x 4,
// transposed in registers: a call's weights are packed for that call, which has to pay for itself on the smallest maps
// too.
template <class T>
void pack_panel(const T* weight /* [n][k] */, const T* scale /* [n] */, int n, int k, int panel, T* out /* [k][16] */) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T))));
  const int columns = std::min(kPanel, n - panel * kPanel);
  weight += int64_t(panel) * kPanel * k;
  scale += panel * kPanel;
  const int whole = columns == kPanel ? k / 4 * 4 : 0;
  for (int c = 0; whole > 0 && c < kPanel; c += 4) {
    const T* from = weight + int64_t(c) * k;
    const Four s = *reinterpret_cast<const Four*>(scale + c);
    for (int i = 0; i < whole; i += 4) {
      const Four row0 = *reinterpret_cast<const Four*>(from + i), row1 = *reinterpret_cast<const Four*>(from + k + i);
      const Four row2 = *reinterpret_cast<const Four*>(from + 2 * int64_t(k) + i);
      const Four row3 = *reinterpret_cast<const Four*>(from + 3 * int64_t(k) + i);
      const Four low01 = __builtin_shufflevector(row0, row1, 0, 4, 1, 5),
                 high01 = __builtin_shufflevector(row0, row1, 2, 6, 3, 7);
      const Four low23 = __builtin_shufflevector(row2, row3, 0, 4, 1, 5),
                 high23 = __builtin_shufflevector(row2, row3, 2, 6, 3, 7);
      T* to = out + int64_t(i) * kPanel + c;
      *reinterpret_cast<Four*>(to) = s * __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(to + kPanel) = s * __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
      *reinterpret_cast<Four*>(to + 2 * kPanel) = s * __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(to + 3 * kPanel) = s * __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
    }
  }
  for (int i = whole; i < k; ++i)
    for (int c = 0; c < kPanel; ++c)
      out[int64_t(i) * kPanel + c] = c < columns ? weight[int64_t(c) * k + i] * scale[c] : T(0);
}

// One panel of the transpose: what lies side by side stays so.
template <class T>
void pack_transposed_panel(const T* weight /* [k][n] */, int n, int k, int panel, T* out /* [k][16] */) {
  const int columns = std::min(kPanel, n - panel * kPanel);
  weight += panel * kPanel;
  for (int i = 0; i < k; ++i, weight += n, out += kPanel) {
    for (int c = 0; c < columns; ++c) out[c] = weight[c];
    for (int c = columns; c < kPanel; ++c) out[c] = T(0);
  }
}

// A panel into tiles (jobs.h, tiles.h).
inline void tile_panel(const float* panel /* [k][16] */, int k, bf16* out /* [tiles_size<float>(16, k)] */) {
  constexpr int kPairs = kTileInputs / 2, kTileValues = kTileInputs * kPanel;
  typedef uint32_t Words __attribute__((vector_size(4 * kPanel)));
  typedef float Floats __attribute__((vector_size(4 * kPanel)));
  for (int block = 0; block < k; block += kTileInputs, out += kParts<float> * kTileValues)
    for (int i = 0; i < kPairs; ++i) {
      Floats pair[2] = {};
      for (int half = 0; half < 2; ++half)
        if (const int input = block + i + half * kPairs; input < k)
          std::memcpy(&pair[half], panel + int64_t(input) * kPanel, sizeof(Floats));
      for (int part = 0; part < kParts<float>; ++part) {
        Words upper[2];
        for (int half = 0; half < 2; ++half) {
          std::memcpy(&upper[half], &pair[half], sizeof(Words));
          upper[half] &= 0xffff0000u;
          Floats taken;
          std::memcpy(&taken, &upper[half], sizeof(Words));
          pair[half] -= taken;
        }
        const Words words = upper[0] >> 16 | upper[1];
        std::memcpy(out + part * kTileValues + i * 2 * kPanel, &words, sizeof(Words));
      }
    }
}

template <class T>
void pack_shift(const T* shift /* [n] */, int n, T* out /* [round_up(n, 16)] */) {
  for (int64_t c = 0; c < round_up(n, kPanel); ++c) out[c] = c < n ? shift[c] : T(0);
}

template <class T>
void pack_depthwise(const T* weight /* [c][9] */, int channels, T* out /* [9][c] */) {
  for (int tap = 0; tap < 9; ++tap)
    for (int c = 0; c < channels; ++c) out[int64_t(tap) * channels + c] = weight[int64_t(c) * 9 + tap];
}

}  // namespace dynroute
