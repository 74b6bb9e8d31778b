// What a training stage's raw output goes through: the sums of its BatchNorm, forward and backward, and its gradient.
#pragma once
#include "target.h"
#include "train_jobs.h"

namespace dynroute::DYNROUTE_TARGET {

// Pixels walked channel by channel: few, so that each is a stream that the next channels go on with; a tile's pixels of
// many channels lie on too many pages for that. Sums are added up chunk by chunk: in one go they would round too much,
// as a gradient's sum is small beside its parts.
constexpr int kChunk = 8;

template <class T>
DYNROUTE_INLINE T weight_of(const T* weights, int sample) {
  return weights ? weights[sample] : T(1);
}

// body(values), with a map's values as they are stored; what is computed in double is never narrow.
template <class Wide, class Narrow, class Body>
DYNROUTE_INLINE void with_values(const RawMap<Wide, Narrow>& map, const Body& body) {
  if constexpr (sizeof(Wide) == sizeof(float))
    if (map.narrow) return body(map.narrow);
  body(map.wide);
}

template <class T, class Load>
DYNROUTE_INLINE Vec<T> load_raw(const Raw<T>& map, int64_t at, Load load) {
  if constexpr (std::is_same_v<T, float>)
    if (map.narrow) return load(map.narrow + at);
  return load(map.wide + at);
}

// The gradient before a stage's ReLU, where `y` was loaded from value `at` of output.y, of channels from c on.
template <class T, class Load>
DYNROUTE_INLINE Vec<T> through_relu(const TrainOutput<T>& output, Vec<T> g, Vec<T> y, int64_t at, int c, Load load) {
  if (!output.relu) return g;
  Vec<T> v = fma(load(output.scale + c), y, load(output.shift + c));
  if (output.residual) v = v + load(output.residual + at);
  return where_positive(v, g);
}

// Adds to a task's sums those of a tile of raw output as it is stored, about the pivot, the task's first pixel:
// [3][n] pivot, sums, squares.
template <class T, class O>
DYNROUTE_INLINE void add_statistics(const O* out /* [pixels, n] */, int pixels, int n, bool first, T* task_sums) {
  T *pivot = task_sums, *sums = pivot + n, *squares = sums + n;
  if (first) {
    for_channels<T>(n, [&](int c, auto load, auto store) DYNROUTE_ALWAYS { store(pivot + c, load(out + c)); });
    std::memset(sums, 0, size_t(2 * n) * sizeof(T));
  }
  for (int begin = 0; begin < pixels; begin += kChunk, out += int64_t(kChunk) * n) {
    const int some = min(kChunk, pixels - begin);
    for_channels<T>(n, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
      const Vec<T> minus = Vec<T>::set(-1) * load(pivot + c);
      Vec<T> sum = Vec<T>::set(0), square = sum;
      const O* from = out + c;
      for (int i = 0; i < some; ++i, from += n) {
        const Vec<T> v = load(from) + minus;
        sum = sum + v, square = fma(v, v, square);
      }
      store(sums + c, load(sums + c) + sum), store(squares + c, load(squares + c) + square);
    });
  }
}

// The product of a tile's pixels, into its raw output and its task's sums.
template <class T>
DYNROUTE_INLINE void multiply(const T* panel, int64_t stride, int pixels, const Pointwise<T>& weights,
                              const RawOut<T>& raw, bool first, T* task_sums) {
  with_values(raw, [&](auto* out) DYNROUTE_ALWAYS {
    using O = std::remove_pointer_t<decltype(out)>;
    pointwise<T, O>({panel, stride, pixels, weights, out, nullptr, false, nullptr});
    add_statistics<T, O>(out, pixels, weights.n, first, task_sums);
  });
}

// What the gradient of a raw output is made with (see TrainProductJob).
template <class T>
struct OutputGradient {
  TrainOutput<T> output;
  const T* grad;
  T weight;  // of grad
  const T *gain, *slope, *mean_grad;
};

// That gradient for `count` pixels from value `at` of the maps on, into rows `stride` apart.
template <class T>
DYNROUTE_INLINE void make_output_gradient(const OutputGradient<T>& of, int64_t at, int count, int channels, T* to,
                                          int64_t stride) {
  const OutputGradient<T> from = of;  // its own copy, here and elsewhere: stores might change what a reference is to
  const TrainOutput<T> output = from.output;
  const Vec<T> minus = Vec<T>::set(-1), weight = Vec<T>::set(from.weight);
  with_values(output.y, [&](auto* raw) DYNROUTE_ALWAYS {
    for (int begin = 0; begin < count; begin += kChunk, at += int64_t(kChunk) * channels, to += kChunk * stride) {
      const int some = min(kChunk, count - begin);
      for_channels<T>(channels, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
        const Vec<T> gain = load(from.gain + c), slope = load(from.slope + c);
        const Vec<T> minus_grad = minus * load(from.mean_grad + c), minus_mean = minus * load(output.mean + c);
        int64_t i = at + c;
        T* row = to + c;
        for (int p = 0; p < some; ++p, i += channels, row += stride) {
          const Vec<T> y = load(raw + i), g = through_relu(output, weight * load(from.grad + i), y, i, c, load);
          store(row, fma(gain, g + minus_grad, slope * (y + minus_mean)));
        }
      });
    }
  });
}

}  // namespace dynroute::DYNROUTE_TARGET
