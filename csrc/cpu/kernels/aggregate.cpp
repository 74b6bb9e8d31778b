// X = down_weight * down + keep_weight * keep + up_weight * bilinear_x2(up), in one pass, in this order.
// Unit of work: a row; within it, blocks of `up` that fit L1. The x2 bilinear has the weights 1/4 and 3/4, first down
// the columns, then along the row; beyond the border the border is repeated. Bound by memory: what counts is that every
// source is read once, front to back.
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

// inputs: one row of each source, null if its weight is 0
template <class S>
struct SourceRows {
  const S* down;              // [w, c]
  const S* keep;              // [w, c]
  const S *up_near, *up_far;  // [w/2, c]: the rows weighing 3/4 and 1/4
  Compute<S> down_weight, keep_weight, up_weight;
};

constexpr int kBlock = 4096, kChunk = 512;  // values of a block of `up`, and of its channels at a time

template <class S, class Load, class T = Compute<S>>
DYNROUTE_INLINE Vec<T> weighted(const SourceRows<S>& in, int64_t at, Load load) {
  Vec<T> sum = Vec<T>::set(0);
  if (in.down) sum = Vec<T>::set(in.down_weight) * load(in.down + at);
  if (in.keep) sum = fma(Vec<T>::set(in.keep_weight), load(in.keep + at), sum);
  return sum;
}

template <class S, class O>
void row_without_up(const SourceRows<S>& in, int64_t size, O* out /* [size] */) {
  // size is at most 2^31: a row
  for_channels<Compute<S>>(
      int(size), [&](int c, auto load, auto store) DYNROUTE_ALWAYS { store(out + c, weighted(in, c, load)); });
}

template <class S, class O>
void row_with_up(const SourceRows<S>& in, int w, int channels, O* out /* [w, channels] */) {
  using T = Compute<S>;
  const int half = w / 2;
  const Vec<T> near = Vec<T>::set(T(0.75)), far = Vec<T>::set(T(0.25)), alpha = Vec<T>::set(in.up_weight);
  T blended[kBlock + 2 * kChunk];  // [pixels + 2][chunk]: between the two source rows, not yet between columns
  for (int c0 = 0; c0 < channels; c0 += kChunk) {
    const int chunk = min(kChunk, channels - c0), pixels = kBlock / chunk;
    for (int begin = 0; begin < half; begin += pixels) {
      const int end = min(begin + pixels, half);
      for (int x = begin - 1; x <= end; ++x) {
        const int64_t from = int64_t(min(max(x, 0), half - 1)) * channels + c0;
        T* to = blended + int64_t(x - begin + 1) * chunk;
        for_channels<T>(chunk, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
          store(to + c, fma(near, load(in.up_near + from + c), far * load(in.up_far + from + c)));
        });
      }
      for (int x = begin; x < end; ++x) {
        const T* middle = blended + int64_t(x - begin + 1) * chunk;
        const int64_t at = int64_t(2 * x) * channels + c0;
        for_channels<T>(chunk, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
          const Vec<T> left = load(middle - chunk + c), here = near * load(middle + c),
                       right = load(middle + chunk + c);
          store(out + at + c, fma(alpha, fma(far, left, here), weighted(in, at + c, load)));
          store(out + at + channels + c, fma(alpha, fma(far, right, here), weighted(in, at + channels + c, load)));
        });
      }
    }
  }
}

}  // namespace

template <class S, class O>
void pull_row(const Sources<S>& sources, int h, int w, int c, int y, O* out /* [w, c] */) {
  const int64_t size = int64_t(w) * c, up_size = size / 2;
  SourceRows<S> in = {};
  in.down_weight = sources.down_weight, in.keep_weight = sources.keep_weight, in.up_weight = sources.up_weight;
  if (sources.down_weight != 0) in.down = sources.down + y * size;
  if (sources.keep_weight != 0) in.keep = sources.keep + y * size;
  if (sources.up_weight == 0) return row_without_up(in, size, out);
  const int near = y / 2, far = min(max(y % 2 ? near + 1 : near - 1, 0), h / 2 - 1);
  in.up_near = sources.up + near * up_size;
  in.up_far = sources.up + far * up_size;
  row_with_up(in, w, c, out);
}

template <class S>
void aggregate(const AggregateJob<S>& job, int band) {
  const int rows = cuts::aggregate_rows(job.w, job.c);
  for (int y = band * rows; y < min((band + 1) * rows, job.h); ++y)
    pull_row(job.sources, job.h, job.w, job.c, y, job.out + int64_t(y) * job.w * job.c);
}

template void pull_row<float, float>(const Sources<float>&, int, int, int, int, float*);
template void pull_row<bf16, float>(const Sources<bf16>&, int, int, int, int, float*);
#if defined(DYNROUTE_TARGET_PORTABLE)
template void pull_row<double, double>(const Sources<double>&, int, int, int, int, double*);
#endif
DYNROUTE_INSTANTIATE(aggregate, AggregateJob)

}  // namespace dynroute::DYNROUTE_TARGET
