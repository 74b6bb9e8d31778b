// The arithmetic peak of one instruction set: nothing but independent multiply-adds on registers. A multiply-add takes
// some 4 cycles and two start in each, so 8 chains would do; more leave slack, and still fit the registers beside the
// two factors (16 registers of 256 bits, 32 of 512 or NEON).
#include "target.h"
#if defined(DYNROUTE_TARGET_AMX)
#include "tiles.h"
#endif

namespace dynroute::DYNROUTE_TARGET {

#if defined(DYNROUTE_TARGET_AVX512) || defined(DYNROUTE_TARGET_NEON)
constexpr int kChains = 20;
#else
constexpr int kChains = 12;
#endif

// `iterations` steps of every chain; returns the floating-point operations done, two per lane and step.
template <class T>
double fma_loop(int64_t iterations) {
  // The accumulator is a factor: x = x * a + b cannot be hoisted out of the loop, and stays finite (towards b / (1 -
  // a)).
  const Vec<T> a = Vec<T>::set(T(0.9375)), b = Vec<T>::set(T(0.0625));
  Vec<T> x[kChains];
  DYNROUTE_UNROLL for (int i = 0; i < kChains; ++i) x[i] = Vec<T>::set(T(i));
  for (int64_t step = 0; step < iterations; ++step) {
    DYNROUTE_UNROLL for (int i = 0; i < kChains; ++i) x[i] = fma(x[i], a, b);
  }
  // tells the compiler that every chain's end is read: else it would leave the loop out
  T ends[kChains * Vec<T>::width];
  DYNROUTE_UNROLL for (int i = 0; i < kChains; ++i) x[i].store(ends + i * Vec<T>::width);
  asm volatile("" : : "m"(ends));
  return 2.0 * double(iterations) * kChains * Vec<T>::width;
}

#if defined(DYNROUTE_TARGET_AMX)
// The same of the tile unit: four sums, as it starts a product every 16 cycles and ends it after some 52.
double tile_loop(int64_t iterations) {
  const TileScope scope(true);
  for (int64_t step = 0; step < iterations; ++step)
    tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>(), tile_multiply<2, 5, 6>(), tile_multiply<3, 5, 7>();
  return 2.0 * double(iterations) * 4 * kTileRows * kPanel * kTileInputs;
}
#endif

template double fma_loop<float>(int64_t);
#if defined(DYNROUTE_TARGET_PORTABLE)
template double fma_loop<double>(int64_t);
#endif

}  // namespace dynroute::DYNROUTE_TARGET
