// train_depthwise: backward of a depthwise 3x3 of listed samples: the gradient of what it read and of its taps, and
// sums for the BatchNorm that its input went through.
//
// Work: a task is a run of tiles of 8 x 8 input pixels of a sample, and 64 channels. The output's gradient under a
// tile, with its border, comes to shared memory; a thread has 2 x 2 input pixels of 4 channels, and each gradient that
// it reads serves its pixels and the taps alike. The input is made again (train_source.cuh). Sums stay in registers
// through the run, then the block adds them up and leaves one row of them. Memory: the output's gradient 1.56 times
// (stride 2: 0.39), the input once, its gradient once.
#include "train_columns.cuh"
#include "train_source.cuh"

namespace dynroute::cuda {

constexpr int kTapsGroup = 4;  // channels of a thread

// Four values, in float.
template <class T>
__device__ inline void four_floats(const T* from, float (&to)[4]) {
  if constexpr (kIsFloat<T>) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    const float2 low = to_float2(words.x, T()), high = to_float2(words.y, T());
    to[0] = low.x, to[1] = low.y, to[2] = high.x, to[3] = high.y;
  }
}
template <class T>
__device__ inline void four_of_map(const T* from, float (&to)[4]) {
  __builtin_assume(__isGlobal(from));
  four_floats(from, to);
}
template <class T>
__device__ inline void store_floats(T* to, const float (&from)[4]) {
  if constexpr (kIsFloat<T>) *reinterpret_cast<float4*>(to) = {from[0], from[1], from[2], from[3]};
  else *reinterpret_cast<uint2*>(to) = {from_float2(from[0], from[1], T()), from_float2(from[2], from[3], T())};
}
template <class T>
__device__ inline void round_four(float (&values)[4]) {
#pragma unroll
  for (float& value : values) value = float(T(value));
}

// What the depthwise read at offset `at` of a sample's map; 0 where its ReLU held it back.
template <class T>
__device__ inline void input_values(const TrainSource& source, const T* map, int channel, int at, float (&values)[4]) {
  four_of_map(map + at, values);
  if (source.kind == kNormed) {
    float scale[4], shift[4];
    load_floats(source.scale + channel, scale), load_floats(source.shift + channel, shift);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = fmaf(scale[i], values[i], shift[i]);
  }
  if (source.kind == kAsIs) return;
#pragma unroll
  for (float& value : values) value = relu(value);
  round_four<T>(values);
}

// What is added to the input's gradient besides.
template <class T>
__device__ inline void add_others(const TrainDepthwiseParams& p, int sample, int64_t first, int channel, int at,
                                  float (&values)[4]) {
  float more[4];
  if (p.added) {
    four_of_map(static_cast<const T*>(p.added) + first + at, more);
    if (p.passed.relu) {
      float raw[4], scale[4], shift[4], rest[4] = {};
      four_of_map(static_cast<const T*>(p.passed.raw) + first + at, raw);
      load_floats(p.passed.scale + channel, scale), load_floats(p.passed.shift + channel, shift);
      if (p.passed.residual) four_of_map(static_cast<const T*>(p.passed.residual) + first + at, rest);
#pragma unroll
      for (int i = 0; i < 4; ++i) more[i] = fmaf(scale[i], raw[i], shift[i]) + rest[i] > 0 ? more[i] : 0;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] += more[i];
  }
  if (!p.more) return;
  const float weight = p.more_weight[sample];
  if (weight == 0) return;
  four_of_map(static_cast<const T*>(p.more) + first + at, more);
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = fmaf(weight, more[i], values[i]);
}

// The output's gradient under a tile: pixels of [side][side], 64 channels.
template <class T>
__device__ inline void fetch_gradient(T* to, const TrainDepthwiseParams& p, int64_t sample, int y0, int x0, int side,
                                      int chunk) {
  constexpr int V = kVector<T>, kAcross = kRunChannels / V;
  const int thread = thread_here(), own = thread % kAcross * V, channel = chunk * kRunChannels + own, c = p.source.c;
  const T* const from = static_cast<const T*>(p.grad) + sample * p.h * p.w * c + channel;
#pragma unroll 1
  for (int i = thread / kAcross; i < side * side; i += kTrainThreads / kAcross) {
    const int row = side == kTapsHalo ? i / kTapsHalo : i / 5, y = y0 + row, x = x0 + i - row * side;
    const bool is = channel < c && unsigned(y) < unsigned(p.h) && unsigned(x) < unsigned(p.w);
    store_group(to + i * kRunChannels + own, is ? load_map(from + (y * p.w + x) * c) : uint4{});
  }
}

template <int kStride>
constexpr int kTapsSide = kStride == 1 ? kTapsHalo : kTapsTile / 2 + 1;

// Calls f(input, tap, gradient) for a patch's input pixels, 0 to 3, and the outputs that read them, each once by its
// tap: tap k of output o read input stride * o + k - 1. `from`: the first output that the patch may have been read by.
template <class T, int kStride, class F>
__device__ inline void for_taps(const T* from, F&& f) {
  constexpr int kReach = kStride == 1 ? 4 : 2;
#pragma unroll
  for (int oy = 0; oy < kReach; ++oy)
#pragma unroll
    for (int ox = 0; ox < kReach; ++ox) {
      float of[kTapsGroup];
      four_floats(from + (oy * kTapsSide<kStride> + ox) * kRunChannels, of);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int ky = kStride == 1 ? i / 2 + 2 - oy : i / 2 + 1 - 2 * oy,
                  kx = kStride == 1 ? i % 2 + 2 - ox : i % 2 + 1 - 2 * ox;
        if (ky >= 0 && ky < 3 && kx >= 0 && kx < 3) f(i, ky * 3 + kx, of);
      }
    }
}

// A task, in shared memory: what all threads know alike needs no registers of each.
struct TapsTask {
  int64_t first;  // value of the sample's map
  int listed, sample, run, chunk;
};

template <class T, int kStride>
__device__ inline void taps_run(const TrainDepthwiseParams& p, const TapsTask& task, unsigned char* memory) {
  constexpr int kSide = kTapsSide<kStride>;
  T* const halo = reinterpret_cast<T*>(memory);
  constexpr int kHalo = kTapsHalo * kTapsHalo * kRunChannels * int(sizeof(T));
  float* const taps =
      reinterpret_cast<float*>(memory + (kHalo > rows_scratch(kDepthwiseRows) ? kHalo : rows_scratch(kDepthwiseRows)));
  const TrainSource& source = p.source;
  const int &chunk = task.chunk, &sample = task.sample;
  const int64_t& first = task.first;
  const int &h = source.h, &w = source.w, &c = source.c;
  for (int i = threadIdx.x; i < 9 * kRunChannels; i += kTrainThreads) {
    const int at = chunk * kRunChannels + i % kRunChannels;
    taps[i] = at < c ? p.taps[i / kRunChannels * c + at] : 0;
  }
  float sums[kDepthwiseRows][kTapsGroup] = {};
#pragma unroll 1
  for (int tile = task.run * kTapsRun; tile < min((task.run + 1) * kTapsRun, taps_tiles(h, w)); ++tile) {
    const int in_row = ceil_div(w, kTapsTile), y0 = tile / in_row * kTapsTile, x0 = tile % in_row * kTapsTile;
    const int thread = thread_here(), group = thread % 16 * kTapsGroup, channel = chunk * kRunChannels + group;
    const int patch_y = thread / 64 * 2, patch_x = thread / 16 % 4 * 2, y = y0 + patch_y, x = x0 + patch_x;
    float values[4][kTapsGroup] = {};  // on their way together with the gradient
    if (p.partials && channel < c)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (y + i / 2 < h && x + i % 2 < w)
          input_values(source, static_cast<const T*>(source.map) + first, channel,
                       ((y + i / 2) * w + x + i % 2) * c + channel, values[i]);
    __syncthreads();  // the tile before has been read
    fetch_gradient(halo, p, sample, kStride == 1 ? y0 - 1 : y0 / 2, kStride == 1 ? x0 - 1 : x0 / 2, kSide, chunk);
    __syncthreads();
    if (channel >= c) continue;
    const T* const from = halo + (patch_y / kStride * kSide + patch_x / kStride) * kRunChannels + group;
    if (p.partials) {
      for_taps<T, kStride>(from, [&](int i, int tap, const float (&of)[kTapsGroup]) {
#pragma unroll
        for (int e = 0; e < kTapsGroup; ++e) sums[tap][e] = fmaf(values[i][e], of[e], sums[tap][e]);
      });
    }
    if (!p.grad_x) continue;
    float grads[4][kTapsGroup] = {};
    for_taps<T, kStride>(from, [&](int i, int tap, const float (&of)[kTapsGroup]) {
      const float4 by = *reinterpret_cast<const float4*>(taps + tap * kRunChannels + group);
      grads[i][0] = fmaf(by.x, of[0], grads[i][0]), grads[i][1] = fmaf(by.y, of[1], grads[i][1]);
      grads[i][2] = fmaf(by.z, of[2], grads[i][2]), grads[i][3] = fmaf(by.w, of[3], grads[i][3]);
    });
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (y + i / 2 >= h || x + i % 2 >= w) continue;
      const int at = ((y + i / 2) * w + x + i % 2) * c + channel;
      float (&grad)[kTapsGroup] = grads[i];
      add_others<T>(p, sample, first, channel, at, grad);
      if (source.kind != kAsIs) {
        float read[kTapsGroup];  // made again: kept, they would be too many registers
        input_values(source, static_cast<const T*>(source.map) + first, channel, at, read);
#pragma unroll
        for (int e = 0; e < kTapsGroup; ++e) grad[e] = read[e] > 0 ? grad[e] : 0;
      }
      store_floats(static_cast<T*>(p.grad_x) + first + at, grad);
      if (!p.mean) continue;
      float raw[4], mean[4], invstd[4];
      round_four<T>(grad);
      four_of_map(static_cast<const T*>(source.map) + first + at, raw);
      load_floats(p.mean + channel, mean), load_floats(p.invstd + channel, invstd);
#pragma unroll
      for (int e = 0; e < kTapsGroup; ++e) {
        sums[kDepthwiseSums][e] += grad[e];
        sums[kDepthwiseSums + 1][e] = fmaf(grad[e], (raw[e] - mean[e]) * invstd[e], sums[kDepthwiseSums + 1][e]);
      }
    }
  }
  if (!p.partials) return;
  float* const to =
      p.partials + (int64_t(task.listed) * taps_runs(h, w) + task.run) * kDepthwiseRows * c + chunk * kRunChannels;
  block_columns(sums, reinterpret_cast<float*>(memory), [&](int row, int at, float sum) {
    if (chunk * kRunChannels + at < c) to[row * c + at] = sum;
  });
}

template <class T>
__device__ inline void train_depthwise(const TrainDepthwiseParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ TapsTask task;
  const int runs = taps_runs(p.source.h, p.source.w), chunks = train_chunks(p.source.c);
  const int64_t tasks = int64_t(samples_of(p.samples, p.n)) * runs * chunks;
  for (int64_t at = blockIdx.x; at < tasks; at += gridDim.x) {
    __syncthreads();
    if (threadIdx.x == 0) {
      const int listed = int(at / chunks / runs), sample = sample_of(p.samples, listed);
      task = {int64_t(sample) * p.source.h * p.source.w * p.source.c, listed, sample, int(at / chunks % runs),
              int(at % chunks)};
    }
    __syncthreads();
    if (p.stride == 1) taps_run<T, 1>(p, task, memory);
    else taps_run<T, 2>(p, task, memory);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_depthwise, TrainDepthwiseParams, kTrainThreads, kTrainResident)
