// Logits from scale 1/4 to full size: bilinear x4, from [h, w, c] to cropped planes.
// Unit of work: the output rows of a band of input rows. A source row is first widened x4 for all planes into one of
// two buffers (L2), and every output row is then a weighted sum of two such: the widening, which does not vectorise as
// well, is done once per source row rather than per output row.
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

template <class T>
DYNROUTE_INLINE T value(T stored) {
  return stored;
}
DYNROUTE_INLINE float value(bf16 stored) {
  const uint32_t bits = uint32_t(stored.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

// out[k][4 * w] from row[w][channels]; `line` is [w + 2].
template <class S, class T>
void widen(const S* row, int w, int channels, T* line, T* out) {
  for (int k = 0; k < channels; ++k, out += 4 * int64_t(w)) {
    for (int x = 0; x < w; ++x) line[x + 1] = value(row[int64_t(x) * channels + k]);
    line[0] = line[1];
    line[w + 1] = line[w];
    for (int x = 0; x < w; ++x) {
      const T left = line[x], middle = line[x + 1], right = line[x + 2];
      out[4 * x + 0] = T(0.375) * left + T(0.625) * middle;
      out[4 * x + 1] = T(0.125) * left + T(0.875) * middle;
      out[4 * x + 2] = T(0.875) * middle + T(0.125) * right;
      out[4 * x + 3] = T(0.625) * middle + T(0.375) * right;
    }
  }
}

}  // namespace

template <class S>
void upsample(const UpsampleJob<S>& job, int band) {
  using T = Compute<S>;
  const int64_t wide = 4 * int64_t(job.w), size = wide * job.c;
  T* buffer[2];
  ScratchParts<T> parts(3, 2 * size + job.w + 2);
  for (T*& wide_row : buffer) wide_row = parts.take(size);
  T* line = parts.take(job.w + 2);
  int held[2] = {-1, -1};
  const auto widened = [&](int y) {
    if (held[y & 1] != y) widen(job.x + int64_t(y) * job.w * job.c, job.w, job.c, line, buffer[y & 1]), held[y & 1] = y;
    return buffer[y & 1];
  };
  const int begin = 4 * cuts::kUpsampleRows * band, end = min(begin + 4 * cuts::kUpsampleRows, job.out_h);
  for (int y = begin; y < end; ++y) {
    // rows 4y, 4y + 1 lie above the centre of source row y, 4y + 2 and 4y + 3 below
    const int source = y / 4, phase = y % 4;
    const int top = phase < 2 ? max(source - 1, 0) : source, bottom = phase < 2 ? source : min(source + 1, job.h - 1);
    const T weights[4] = {T(0.625), T(0.875), T(0.125), T(0.375)};
    const Vec<T> below = Vec<T>::set(weights[phase]), above = Vec<T>::set(1 - weights[phase]);
    const T *from_top = widened(top), *from_bottom = widened(bottom);
    for (int k = 0; k < job.c; ++k) {
      T* out = job.out + (int64_t(k) * job.out_h + y) * job.out_w;
      for_channels<T>(job.out_w, [&](int x, auto load, auto store) DYNROUTE_ALWAYS {
        store(out + x, fma(below, load(from_bottom + k * wide + x), above * load(from_top + k * wide + x)));
      });
    }
  }
}

DYNROUTE_INSTANTIATE(upsample, UpsampleJob)

}  // namespace dynroute::DYNROUTE_TARGET
