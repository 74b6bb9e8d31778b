// The maps that training's kernels read, made of stored ones value by value (params_train.h): a thread asks for groups
// of 16 bytes of one place along the channels, pixel after pixel, with what belongs to the channels in registers.
#pragma once
#include "params_train.h"
#include "primitives.cuh"

namespace dynroute::cuda {

// 16 bytes of a map, in global memory: a pointer that was read from shared memory would else be asked what it points
// to.
template <class T>
__device__ inline uint4 load_map(const T* from) {
  __builtin_assume(__isGlobal(from));
  return load_group(from);
}
// Values of channels that are neighbours, in global memory.
template <int V>
__device__ inline void load_floats(const float* from, float (&to)[V]) {
  __builtin_assume(__isGlobal(from));
#pragma unroll
  for (int i = 0; i < V; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
  }
}

// The number of listed samples, and a listed one.
__device__ inline int samples_of(const TrainSamples& samples, int n) {
  return samples.list.count ? *samples.list.count : n;
}
__device__ inline int sample_of(const TrainSamples& samples, int listed) {
  return samples.list.count ? samples.list.samples[listed] : listed;
}
__device__ inline bool is_taken(const uint8_t* taken, int sample) { return !taken || taken[sample]; }

// Values as they are stored, in float.
template <class T>
__device__ inline void round_to(float (&values)[kVector<T>]) {
  if constexpr (!kIsFloat<T>) unpack<T>(pack<T>(values), values);
}

// A source, at kVector<T> channels of a sample.
template <class T>
struct SourceValues {
  static constexpr int V = kVector<T>;
  const TrainSource& of;
  const T *map, *raw;
  float factor;
  int channel;

  __device__ SourceValues(const TrainSource& source, int sample, int channel) : of(source), channel(channel) {
    const bool small = of.kind == kQuarter;
    const int64_t size = int64_t(small ? of.from_h : of.h) * (small ? of.from_w : of.w) * of.c;
    map = static_cast<const T*>(of.map) + sample * size + channel;
    raw = static_cast<const T*>(of.raw) + sample * size + channel;  // not read where there is none
    factor = of.factor ? of.factor[sample] : 1;
  }
  // At pixel (y, x), which there is.
  __device__ uint4 operator()(int y, int x) const {
    float values[V];
    if (of.kind == kQuarter) {
      const T* from = map + ((4 * y + 1) * of.from_w + 4 * x + 1) * of.c;
      float sum[2][V];
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        unpack<T>(load_map(from + row * of.from_w * of.c), sum[row]);
        unpack<T>(load_map(from + (row * of.from_w + 1) * of.c), values);
#pragma unroll
        for (int i = 0; i < V; ++i) sum[row][i] += values[i];
      }
#pragma unroll
      for (int i = 0; i < V; ++i) values[i] = 0.25f * (sum[0][i] + sum[1][i]);
      return pack<T>(values);
    }
    const int at = (y * of.w + x) * of.c;
    const uint4 stored = load_map(map + at);
    if (of.kind == kAsIs) return stored;
    unpack<T>(stored, values);
    if (of.kind == kRectified) return pack_relu<T>(values);
    float normed[V];
    if (of.kind == kHidden) unpack<T>(load_map(raw + at), normed);
#pragma unroll
    for (int i = 0; i < V; i += 4) {  // they lie in L1: as registers they would be too much
      float scale[4], shift[4];
      load_floats(of.scale + channel + i, scale), load_floats(of.shift + channel + i, shift);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float& value = values[i + k];
        if (of.kind == kNormed) value = fmaf(scale[k], value, shift[k]);
        else value = fmaf(factor, fmaf(scale[k], normed[i + k], shift[k]), value);
      }
    }
    return pack_relu<T>(values);
  }
};

// What a normed map's ReLU read, scale * raw + shift [+ residual], at kVector<T> channels from `channel` on of a sample
// whose map begins at value `first`; all 1 where there is no ReLU.
template <class T>
__device__ inline void before_relu(const TrainNormed& of, int64_t first, int channel, int at,
                                   const float (&raw)[kVector<T>], float (&before)[kVector<T>]) {
  constexpr int V = kVector<T>;
#pragma unroll
  for (int i = 0; i < V; ++i) before[i] = 1;
  if (!of.relu) return;
#pragma unroll
  for (int i = 0; i < V; i += 4) {
    float scale[4], shift[4];
    load_floats(of.scale + channel + i, scale), load_floats(of.shift + channel + i, shift);
#pragma unroll
    for (int k = 0; k < 4; ++k) before[i + k] = fmaf(scale[k], raw[i + k], shift[k]);
  }
  if (!of.residual) return;
  float more[V];
  unpack<T>(load_map(static_cast<const T*>(of.residual) + first + channel + at), more);
#pragma unroll
  for (int i = 0; i < V; ++i) before[i] += more[i];
}

// The gradient of a raw output, at kVector<T> channels of a sample.
template <class T>
struct GradientValues {
  static constexpr int V = kVector<T>;
  const TrainGradient& of;
  int64_t first;  // the sample's map
  int sample, channel;
  float weight;

  __device__ GradientValues(const TrainGradient& gradient, int sample, int channel)
      : of(gradient), sample(sample), channel(channel) {
    first = int64_t(sample) * of.h * of.w * of.c;
    weight = of.weight ? of.weight[sample] : 1;
  }
  __device__ uint4 operator()(int y, int x) const {
    const int at = (y * of.w + x) * of.c;
    float values[V], g[V], before[V];
    unpack<T>(load_map(static_cast<const T*>(of.of.raw) + first + channel + at), values);
    if (of.grad) unpack<T>(load_map(static_cast<const T*>(of.grad) + first + channel + at), g);
    else load_floats(of.of_samples + int64_t(sample) * of.c + channel, g);
    before_relu<T>(of.of, first, channel, at, values, before);
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      float gain[4], slope[4], mean[4], mean_grad[4];
      load_floats(of.gain + channel + i, gain), load_floats(of.slope + channel + i, slope);
      load_floats(of.of.mean + channel + i, mean), load_floats(of.mean_grad + channel + i, mean_grad);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float passes = before[i + k] > 0 ? weight * g[i + k] : 0;
        values[i + k] = fmaf(gain[k], passes - mean_grad[k], slope[k] * (values[i + k] - mean[k]));
      }
    }
    return pack<T>(values);
  }
};

}  // namespace dynroute::cuda
