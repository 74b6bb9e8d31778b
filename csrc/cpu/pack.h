// Weights into the kernels' layouts (params.h). dynroute/ops/packing.py does the same in torch, once per network.
#pragma once
#include <algorithm>

#include "../params.h"

namespace dynroute {

inline int64_t panels_size(int64_t n, int64_t k) { return round_up(n, kPanel) * k; }

// One panel: columns [16 * panel, 16 * panel + 16), each times its scale.
template <class T>
void pack_panel(const T* weight /* [n][k] */, const T* scale /* [n] */, int n, int k, int panel, T* out /* [k][16] */) {
  const int columns = std::min(kPanel, n - panel * kPanel);
  constexpr int block = 16;  // k in blocks, so that reads and writes both stay within a few lines
  for (int kb = 0; kb < k; kb += block)
    for (int c = 0; c < kPanel; ++c)
      for (int i = kb; i < std::min(k, kb + block); ++i)
        out[int64_t(i) * kPanel + c] =
            c < columns ? weight[int64_t(panel * kPanel + c) * k + i] * scale[panel * kPanel + c] : T(0);
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
