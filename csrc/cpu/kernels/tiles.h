// AMX tiles: 16 rows of 64 bytes. C[16 pixels][16 channels] += A[16 pixels][32 inputs] * B[32 inputs][16 channels],
// 8192 multiply-adds in 16 cycles, bfloat16 in and float32 out.
//
// Layouts, each tile 1 KB of its own and parts of the same inputs side by side:
//   pixels   [ceil(m/16)][ceil(k/32)][parts][16 pixels][32 inputs]
//   weights  [ceil(n/16)][ceil(k/32)][parts][16 pairs of inputs][16 channels][2]
// Inputs beyond k are zeros in both; pixels beyond m are whatever was there, and end in rows that nobody reads.
// Where there are three parts, inputs i and i + 16 of a block of 32 are a pair: two vectors of floats, 16 channels
// each, become words with a shift and a blend. Where there is one, pairs are neighbours, as bfloat16 maps have them.
#pragma once
#include <immintrin.h>

#include "simd.h"

namespace dynroute::DYNROUTE_TARGET {

constexpr int kTileRows = 16, kTileValues = kTileRows * kTileInputs;  // values of a tile

template <int Register>
DYNROUTE_INLINE void tile_load(const bf16* from) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(64L), "i"(Register));
}
template <int Register>
DYNROUTE_INLINE void tile_store(float* to, int64_t floats_apart) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(floats_apart * 4), "i"(Register) : "memory");
}
template <int Register>
DYNROUTE_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Register));
}
template <int C, int A, int B>
DYNROUTE_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// While one lives this thread's tiles are whole ones: configuring takes as long as ten products, so tasks do it.
class TileScope {
 public:
  explicit TileScope(bool wanted) : wanted_(wanted) {
    if (wanted) asm volatile("ldtilecfg %0" : : "m"(kWhole));
  }
  ~TileScope() {
    if (wanted_) asm volatile("tilerelease");
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static constexpr Config kWhole = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  const bool wanted_;
};

// 32 inputs of one pixel, as two vectors, into its row of a block's tiles (parts are kTileValues apart).
template <class S>
DYNROUTE_INLINE void put_inputs(Vec<float> first, Vec<float> second, bf16* to) {
  if constexpr (kParts<S> == 1) {
    _mm512_store_si512(to, __m512i(_mm512_cvtne2ps_pbh(second.v, first.v)));
  } else {
    const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
    DYNROUTE_UNROLL for (int part = 0; part < kParts<S>; ++part, to += kTileValues) {
      const __m512i a = _mm512_castps_si512(first.v), b = _mm512_castps_si512(second.v);
      _mm512_store_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b));
      if (part == kParts<S> - 1) break;
      // exact: what a float leaves has as many bits less as the part has
      first.v = _mm512_sub_ps(first.v, _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
      second.v = _mm512_sub_ps(second.v, _mm512_castsi512_ps(_mm512_and_si512(b, upper)));
    }
  }
}

// Pixels [row, row + count) into tiles, [ReLU] applied.
template <class S, bool Relu, class F>
void put_pixels(const F* from /* [count, k], rows lda apart */, int64_t lda, int row, int count, int k, bf16* tiles) {
  const int blocks = int(ceil_div(k, kTileInputs));
  const auto get = [](auto v) DYNROUTE_ALWAYS { return Relu ? relu(v) : v; };
  for (int i = row; i < row + count; ++i, from += lda) {
    bf16* to = tiles + int64_t(i / kTileRows) * blocks * kParts<S> * kTileValues + i % kTileRows * kTileInputs;
    int c = 0;
    for (; c + kTileInputs <= k; c += kTileInputs, to += kParts<S> * kTileValues) {
      if constexpr (sizeof(F) == sizeof(bf16) && !Relu) _mm512_store_si512(to, _mm512_loadu_si512(from + c));
      else put_inputs<S>(get(load(from + c)), get(load(from + c + 16)), to);
    }
    if (int left = k - c) {
      const auto some = [&](int at) DYNROUTE_ALWAYS {
        const int n = min(max(left - at, 0), 16);
        return get(load(from + c + at, n));
      };
      put_inputs<S>(some(0), some(16), to);
    }
  }
}

}  // namespace dynroute::DYNROUTE_TARGET
