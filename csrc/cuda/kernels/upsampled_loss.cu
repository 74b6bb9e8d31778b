// upsampled_loss: the sum of the cross entropies of logits that are upsampled as they are read (bilinear, align_corners
// = False, cropped), and its gradient with respect to the logits as they lie. Nothing is made at full size.
//
// What it costs is the exponentials, one for each class of each full-size pixel, of which a multiprocessor makes 16 in
// a cycle: 43 us for 4 x 1024 x 2048 pixels of 19 classes on 132 multiprocessors at 1.75 GHz. Around each are nine more
// instructions, which take a little longer to issue: two of the bilinear between rows, the largest value, the exponent,
// the sum, the label's own class, and one for the gradients of either row. What has to move, the logits and their
// gradient once and the labels, takes as long again, at the same time.
//
// Work: a task (upsampled_loss.h) per block of 128 threads; tasks share nothing but the loss. A thread has a full-size
// column (with `lane_bits`, several neighbouring lanes have one, each some of the classes) and walks down through the
// task's gaps. In registers it holds, of each class, the gap's two rows between columns, and those rows' gradients. So
// a bilinear between columns and a gradient's way to shared memory is needed once in a gap, not once in a pixel. What
// is left to do at a row's end, when the gap below it is done, is a gather: each low-resolution pixel adds up the two
// gaps of columns that read it, weighted, in their order. No atomics; no neighbour and no batch changes a bit.
//
// Memory: logits pass through shared memory, a row ahead, and lie there between columns too, as the label's, which the
// loss wants, cannot be asked of registers by number. 28 KB at 19 classes and factor 4, four blocks to a multiprocessor
// (three where it has 100 KB); columns and rows at the borders of tasks come twice, from L2. Beyond 544 classes logits
// are read where they lie, and each chunk of classes finds the sum over all of them again: it works, and is slow.
//
// A label that is neither a class nor ignored cannot be told to a host that does not wait: it makes the loss NaN, and
// the gradient of the low-resolution pixels around it.
//
// Sums: of a pixel and of a gap's losses in float, the rest in double; tasks' losses are added by the last block to
// arrive, in the tasks' order. The operator computes in float32: entries of other storage types are empty, and never
// launched.
#include "arrival.cuh"
#include "block_sum.cuh"
#include "primitives.cuh"
#include "upsampled_loss.h"

namespace dynroute::cuda {

constexpr float kLog2e = 1.44269504f, kLn2 = 0.69314718f;
constexpr float kNoLogit = -1e30f;  // of a class that is not there: its exponential is 0, and 0 times it no NaN

// A parameter, read here and now: what is computed from it is not kept in registers through loops, nor shared by the
// variants of a task, one of which is taken.
__device__ inline int here(int parameter) {
  int value;
  asm volatile("mov.u32 %0, %1;" : "=r"(value) : "r"(parameter));
  return value;
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What a pixel counts as. of: -1 where a label is no class, whose weight is then NaN.
struct PixelClass {
  int of;
  float weight;
};
__device__ inline PixelClass class_of(const UpsampledLossParams& p, int64_t label) {
  if (uint64_t(label) >= uint64_t(p.k)) return {-1, __int_as_float(0x7fffffff)};
  return {int(label), p.weight ? p.weight[label] : 1.f};
}

// Where a full-size column lies between two low-resolution ones: what it takes of each, and where they begin in a row.
struct alignas(16) LossColumn {
  float of_left, of_right;
  int at_left, at_right;
};
// Where a block is, in shared memory: registers are for classes.
struct LossPlace {
  LossColumn column[kThreads];  // the threads'
  double losses[kThreads];      // their shares
  const float* logits;          // of the sample
  const int64_t* labels;
  float* gradient;         // null: not wanted
  int x0, owned;           // the task's low-resolution columns
  int first, last;         // its gaps; its rows are [first, last)
  int begin, end;          // the pass's full-size columns, from the tile's first gap's
  int low_begin, low_end;  // low-resolution columns that it reads
  int chunk, classes;      // its first class, and how many
  int u_begin, u_end;      // columns of the task's that it adds to
  int runs, run;           // so many threads share a class's, and so many columns are of each
  int reciprocal;          // of classes, times 65536: a thread's number by classes is exact
};
// A block's dynamic shared memory.
// shares: of the pixels of a gap, what they take of, and give to, the row or column before and behind them.
// slots: of the threads' columns one row's logits, between columns, and those of the row above, where its gradient
// takes their place once it is complete. staged: of low-resolution columns a row, and the next on its way.
struct LossMemory {
  float2* shares;  // [factor]
  float* slots;    // [2][columns of a pass][padded]
  float* staged;   // [2][low_columns][padded]
  __device__ LossMemory(const UpsampledLossParams& p, int classes) {
    extern __shared__ __align__(16) float memory[];
    shares = reinterpret_cast<float2*>(memory), slots = memory + round_up(2 * p.factor, 4);
    staged = slots + 2 * kThreads * classes;
  }
};

__device__ inline void fill_shares(const UpsampledLossParams& p, float2* shares) {
  for (int i = threadIdx.x; i < p.factor; i += kThreads) {
    const int twice = 2 * i + 1 - p.factor % 2;
    shares[i] = {float(2 * p.factor - twice) / float(2 * p.factor), float(twice) / float(2 * p.factor)};
  }
}

// A row of the pass's low-resolution columns, on its way to shared memory.
__device__ inline void stage_row(const UpsampledLossParams& p, const LossPlace& at, int row, int padded,
                                 float* staged) {
  const int thread = thread_here(), k = here(p.k), low = at.low_end - at.low_begin;
  float* const to = staged + row % 2 * p.tiling.low_columns * padded;
  const float* const from = at.logits + (row * p.w + at.low_begin) * k;
  if (k == padded) {  // all of it lies together
    for (int i = thread; i < low * k; i += kThreads) copy_async_word(to + i, from + i);
    return;
  }
  for (int i = thread / 32; i < low; i += kThreads / 32)
#pragma unroll 1
    for (int c = thread % 32; c < k; c += 32) copy_async_word(to + i * padded + c, from + i * k + c);
}

// A row's gradient, as far as the pass's columns and classes make it: a thread has a class and a run of low-resolution
// columns, and reads the slots of each gap once, for the columns on both sides.
__device__ inline void gather_row(const UpsampledLossParams& p, const LossPlace& at, const float2* shares,
                                  const float* slots, int row, int padded) {
  const int factor = here(p.factor), k = here(p.k), thread = thread_here(), classes = at.classes;
  const int run = thread * at.reciprocal >> 16;
  if (run >= at.runs) return;
  const int u_begin = at.u_begin + run * at.run, u_end = min(u_begin + at.run, at.u_end);
  float* const to = at.gradient + (row * p.w + at.x0) * k + at.chunk;
  __builtin_assume(__isGlobal(to));
  for (int c = thread - run * classes; c < classes; c += kThreads) {
    float before = 0;  // what the gap gives to the column behind it
    for (int u = u_begin; u <= u_end; ++u) {
      const int start = u * factor - at.begin, end = min(factor, at.end - at.begin - start);  // the gap's, in the pass
      const float* slot = slots + start * padded + c;
      float left = 0, right = 0;
#pragma unroll 4
      for (int i = max(-start, 0); i < end; ++i) {
        const float value = slot[i * padded];
        left = fmaf(shares[i].x, value, left), right = fmaf(shares[i].y, value, right);
      }
      const int gap = at.x0 + u;
      if (gap == 0 || gap == p.w) left = right = left + right;  // both columns are one
      if (u > u_begin) {
        float* const out = to + (u - 1) * k + c;
        const bool more = (u - 1) * factor < at.begin && at.begin > 0;  // the pass before had some of it
        *out = before + left + (more ? *out : 0.f);
      }
      before = right;
    }
  }
}

// How a pixel's classes are shared out: to one lane, to several, or in chunks to a warp.
enum class LossLanes { kOne, kSome, kWide };
template <LossLanes kLanes>
__device__ inline int lane_bits(const UpsampledLossParams& p) {
  return kLanes == LossLanes::kOne ? 0 : kLanes == LossLanes::kWide ? 5 : p.tiling.lane_bits;
}

// A pass, down through the task's gaps, of the classes from at.chunk.
template <int kClasses, LossLanes kLanes>
__device__ inline void loss_chunk(const UpsampledLossParams& p, LossPlace& at, const LossMemory& memory) {
  constexpr bool kWide = kLanes == LossLanes::kWide;
  const LossTiling& t = p.tiling;
  const int bits = lane_bits<kLanes>(p), factor = here(p.factor), k = here(p.k), padded = kClasses << bits;
  const int thread = thread_here(), lane = thread & ((1 << bits) - 1), own = at.begin + (thread >> bits);
  const int gap_x = at.x0 + own / factor, column_x = factor * (gap_x - 1) + factor / 2 + own % factor;
  const int x = own < at.end && column_x < p.out_w ? column_x : -1;  // below 0: there is none
  const int chunk = kWide ? at.chunk : 0;
  const bool counts_x = lane == 0 && chunk == 0 && (gap_x > at.x0 || gap_x == 0);
  const int mine = chunk + lane * kClasses;  // the thread's first class
  {
    const int from_x = kWide ? 0 : at.low_begin, stride = kWide ? k : padded;
    const float2 share = memory.shares[own % factor];
    at.column[thread] = {share.x, share.y, (min(max(gap_x - 1, at.low_begin), at.low_end - 1) - from_x) * stride,
                         (min(gap_x, at.low_end - 1) - from_x) * stride};
  }
  const auto row_at = [&](int row) -> const float* {
    return kWide ? at.logits + row * p.w * k : memory.staged + row % 2 * t.low_columns * padded;
  };
  const auto between = [](const LossColumn& column, const float* row, int c) {
    return fmaf(column.of_right, row[column.at_right + c], column.of_left * row[column.at_left + c]);
  };
  const auto slots_of = [&](int gap) { return memory.slots + gap % 2 * (kThreads * kClasses); };
  const auto load_row = [&](int gap, float (&to)[kClasses]) {  // of its two the one below
    const float* const from = row_at(min(max(gap, 0), p.h - 1));
    float* const slot = slots_of(gap + 2) + thread_here() * kClasses;
    const LossColumn column = at.column[thread_here()];
#pragma unroll
    for (int j = 0; j < kClasses; ++j) {
      to[j] = !kWide || mine + j < k ? between(column, from, mine + j) : kNoLogit;
      if (!kWide) slot[j] = to[j];
    }
  };

  float above[kClasses], below[kClasses], above_grad[kClasses] = {}, below_grad[kClasses] = {};
  if (!kWide) {
    for (int row = max(at.first - 1, 0); row <= min(at.first, p.h - 1); ++row)
      stage_row(p, at, row, padded, memory.staged);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
  }
  load_row(at.first - 1, below);
#pragma unroll 1
  for (int gap = at.first; gap <= at.last; ++gap) {
    wait_copies<0>();
    __syncthreads();  // the row is there; what lies in the other's place, and in its slots, is read
    if (!kWide && gap < at.last && gap + 1 < p.h) stage_row(p, at, gap + 1, padded, memory.staged), commit_copies();
#pragma unroll
    for (int j = 0; j < kClasses; ++j) above[j] = below[j];
    load_row(gap, below);
    if (kLanes == LossLanes::kSome) __syncwarp();  // a lane reads others' slots

    const int y0 = factor * (gap - 1) + factor / 2;  // of the gap's first pixel, which may lie above the map
    const int end = min(factor, p.out_h - y0), out_w = here(p.out_w);
    const bool counts = counts_x && (gap > at.first || gap == 0);
    float losses = 0;
    int y = max(0, -y0);
    const int64_t* label_at = at.labels + int64_t(y0 + y) * out_w + x;
    __builtin_assume(__isGlobal(label_at));
    int64_t next = x >= 0 && y < end ? *label_at : p.ignore_index;
#pragma unroll 1
    for (; y < end; ++y) {
      const int64_t label = next;
      label_at += out_w;
      if (x >= 0 && y + 1 < end) next = *label_at;
      const bool valid = x >= 0 && label != p.ignore_index;
      const unsigned lanes = kLanes == LossLanes::kOne ? 0 : __ballot_sync(~0u, valid);
      if (!valid) continue;
      const float2 share = memory.shares[y];
      const float of_top = share.x, of_bottom = share.y;
      const PixelClass pixel = class_of(p, label);
      const auto logit = [&](int c) {
        if (kWide) {
          const LossColumn column = at.column[thread_here()];
          const float top = between(column, row_at(max(gap - 1, 0)), c);
          return fmaf(of_bottom, between(column, row_at(min(gap, p.h - 1)), c), of_top * top);
        }
        const int from = (thread_here() - lane) * kClasses + c;
        return fmaf(of_bottom, slots_of(gap)[from], of_top * slots_of(gap + 1)[from]);
      };

      constexpr int kChains = kClasses < 4 ? 1 : 3;  // so many sums grow at once
      float values[kClasses], parts[kChains];
#pragma unroll
      for (int j = 0; j < kClasses; ++j) {
        values[j] = fmaf(of_bottom, below[j], of_top * above[j]);
        parts[j % kChains] = j < kChains ? values[j] : fmaxf(parts[j % kChains], values[j]);
      }
      float most = parts[0];
#pragma unroll
      for (int i = 1; i < kChains; ++i) most = fmaxf(most, parts[i]);
      if (kWide)
#pragma unroll 1
        for (int c = lane; c < k; c += 32) most = fmaxf(most, logit(c));
      for (int other = 1 << bits >> 1; other > 0; other >>= 1) most = fmaxf(most, __shfl_xor_sync(lanes, most, other));
      // Rounded, it is off by as much for every class, and the sum's logarithm by the same: both cancel.
      const float largest = most * kLog2e;
#pragma unroll
      for (int j = 0; j < kClasses; ++j) {
        values[j] = exp2_fast(fmaf(values[j], kLog2e, -largest));
        parts[j % kChains] = j < kChains ? values[j] : parts[j % kChains] + values[j];
      }
      float sum = parts[0];
#pragma unroll
      for (int i = 1; i < kChains; ++i) sum += parts[i];
      if (kWide)
#pragma unroll 1
        for (int c = lane; c < k; c += 32)
          if (c < chunk || c >= chunk + padded) sum += exp2_fast(fmaf(logit(c), kLog2e, -largest));
      for (int other = 1 << bits >> 1; other > 0; other >>= 1) sum += __shfl_xor_sync(lanes, sum, other);

      if (p.gradient) {
        const float scale = __fdividef(pixel.weight, sum), to_top = scale * of_top, to_bottom = scale * of_bottom;
#pragma unroll
        for (int j = 0; j < kClasses; ++j) {
          values[j] -= pixel.of - mine == j ? sum : 0.f;
          above_grad[j] = fmaf(values[j], to_top, above_grad[j]);
          below_grad[j] = fmaf(values[j], to_bottom, below_grad[j]);
        }
      }
      // last, as it needs the registers that values had
      if (counts) losses += pixel.weight * (logf(sum) - kLn2 * fmaf(logit(max(pixel.of, 0)), kLog2e, -largest));
    }
    at.losses[thread_here()] += double(losses);
    if (!p.gradient) continue;

    if (gap == 0 || gap == p.h)  // both rows are one
#pragma unroll
      for (int j = 0; j < kClasses; ++j) above_grad[j] += below_grad[j];
    if (gap > at.first) {  // the row above is complete
      float* const slot = slots_of(gap + 1) + thread_here() * kClasses;
      if (kLanes == LossLanes::kSome) __syncwarp();  // the other lanes have read what lay there
#pragma unroll
      for (int j = 0; j < kClasses; ++j) slot[j] = above_grad[j];
      __syncthreads();
      gather_row(p, at, memory.shares, slots_of(gap + 1), gap - 1, padded);
    }
#pragma unroll
    for (int j = 0; j < kClasses; ++j) {
      if (gap > 0) above_grad[j] = below_grad[j];
      below_grad[j] = 0;
    }
  }
}

// A task, all but its loss's way out: threads' shares of it are in at.losses.
template <int kClasses, LossLanes kLanes>
__device__ inline void loss_task(const UpsampledLossParams& p, LossPlace& at) {
  const LossTiling& t = p.tiling;
  constexpr bool kWide = kLanes == LossLanes::kWide;
  const LossMemory memory(p, kClasses);
  const int padded = kClasses << lane_bits<kLanes>(p), columns = (at.owned + 1) * p.factor;
  if (!kWide)
    for (int i = threadIdx.x / 32; i < 2 * t.low_columns; i += kThreads / 32)
      for (int c = p.k + threadIdx.x % 32; c < padded; c += 32) memory.staged[i * padded + c] = kNoLogit;
#pragma unroll 1
  for (int begin = 0; begin < columns; begin += t.columns) {
#pragma unroll 1
    for (int chunk = 0; chunk < (kWide && p.gradient ? p.k : 1); chunk += padded) {
      __syncthreads();  // what came before is read
      if (threadIdx.x == 0) {
        at.begin = begin, at.end = min(begin + t.columns, columns);
        const int gap = begin / p.factor, last_gap = (at.end - 1) / p.factor;
        at.low_begin = max(at.x0 + gap - 1, 0), at.low_end = min(at.x0 + last_gap, p.w - 1) + 1;
        at.u_begin = max(gap - 1, 0), at.u_end = min(last_gap + 1, at.owned);
        at.chunk = chunk, at.classes = min(p.k - chunk, padded);
        at.runs = max(kThreads / at.classes, 1), at.run = ceil_div(at.u_end - at.u_begin, at.runs);
        at.reciprocal = at.classes > kThreads ? 0 : ceil_div(65536, at.classes);
      }
      __syncthreads();
      loss_chunk<kClasses, kLanes>(p, at, memory);
    }
  }
}

template <class T>
__device__ inline void upsampled_loss(const UpsampledLossParams& p) {
  if constexpr (kIsFloat<T>) {
    __shared__ LossPlace at;
    __shared__ double scratch[kThreads / 32];
    __shared__ int last;
    const LossTiling& t = p.tiling;
    if (t.tasks == 0) {
      if (threadIdx.x == 0) *p.loss = 0;
      return;
    }
    at.losses[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
      const int sample = blockIdx.x / (t.tiles * t.bands), place = blockIdx.x % (t.tiles * t.bands);
      const int64_t map = int64_t(sample) * p.h * p.w * p.k;
      at.logits = p.logits + map, at.gradient = p.gradient ? p.gradient + map : nullptr;
      at.labels = p.labels + int64_t(sample) * p.out_h * p.out_w;
      at.x0 = place % t.tiles * t.tile, at.owned = min(t.tile, p.w - at.x0);
      at.first = place / t.tiles * t.rows, at.last = min(at.first + t.rows, p.h);
    }
    extern __shared__ __align__(16) float memory[];
    fill_shares(p, reinterpret_cast<float2*>(memory));
    __syncthreads();
    if (t.wide) loss_task<kWideLossClasses, LossLanes::kWide>(p, at);
    else if (t.lane_bits > 0 && t.classes == 11) loss_task<11, LossLanes::kSome>(p, at);
    else if (t.lane_bits > 0) loss_task<17, LossLanes::kSome>(p, at);
    else if (t.classes == 3) loss_task<3, LossLanes::kOne>(p, at);
    else if (t.classes == 11) loss_task<11, LossLanes::kOne>(p, at);
    else loss_task<19, LossLanes::kOne>(p, at);
    const double loss = block_sum(at.losses[threadIdx.x], scratch);
    if (threadIdx.x == 0) p.partials[blockIdx.x] = loss;
    if (!arrive_last(p.arrivals, t.tasks, &last)) return;
    double sum = 0;
    for (int i = threadIdx.x; i < t.tasks; i += kThreads) sum += __ldcg(p.partials + i);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *p.loss = float(sum);
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(upsampled_loss, UpsampledLossParams, kThreads, kLossResident)
