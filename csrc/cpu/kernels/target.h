// What the kernel files of one target share: the register-blocked pointwise product, and the kernels' declarations.
#pragma once
#include <type_traits>

#include "kernels.h"
#include "scratch.h"
#include "simd.h"
#include "tasks_of_jobs.h"

namespace dynroute::DYNROUTE_TARGET {

#if defined(DYNROUTE_TARGET_AMX)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif
DYNROUTE_INLINE bool uses_tiles(int k, int n) { return kHasTiles && in_tiles(k, n); }

// The producer's pieces that run between products: vector work that makes the next product's pixels while the tile
// unit is busy with this one.
struct Interleaved {
  void (*piece)(void* work);
  void* work;
  int pieces;
};

// out[i, :] = [ReLU](shift + a[i, :] * panels [+ residual[i, :]]), or, if sums is set, sums += the column sums of that.
// Each output is one chain of fma over k that starts from its shift, whatever the blocking; in tiles it is one chain of
// tile products over k that its shift is added to.
template <class T, class O = T>
struct PointwiseArgs {
  const T* a;  // [m, k], rows lda apart
  int64_t lda;
  int m;
  const Pointwise<T>& weights;
  O* out;             // [m, n], rows n apart
  const T* residual;  // like out, or null
  bool relu;
  T* sums;  // [round_up(n, 16)] or null; rows are added in order
  // Memory that will be wanted soon is prefetched while products are made, a little with every block: null, or where to
  // begin; `prefetch_bytes(m, n)` of it are covered.
  const void* prefetch = nullptr;
  // Element i of `a` at [row, i] lies at row * lda + offsets[i] instead of row * lda + i: a convolution that reads its
  // map where it lies. Null: it does not. Not with sums or a residual.
  const int* offsets = nullptr;
  // `a` and the weights in tiles (tiles.h); the fields a and lda are then not looked at.
  const bf16* tiles = nullptr;
  const Interleaved* interleaved = nullptr;  // all of it is done when the product is; tiles only
};
constexpr int kPrefetchPerBlock = 2048;  // bytes
template <class T>
int64_t prefetch_bytes(int m, int n);
template <class T, class O = T>
void pointwise(const PointwiseArgs<T, O>& args);
// The same in tiles. S: what the weights are stored as.
template <class S, class O>
void pointwise_in_tiles(const PointwiseArgs<float, O>& args);

template <class S, class T, class O>
DYNROUTE_INLINE void product(const PointwiseArgs<T, O>& args) {
  if constexpr (kHasTiles)
    if (args.tiles) return pointwise_in_tiles<S>(args);
  pointwise(args);
}

// The panels as they are computed with: themselves, or widened into `memory` [unpacked_size(...)].
template <class S>
DYNROUTE_INLINE int64_t unpacked_size(int k, int n) {
  return std::is_same_v<S, Compute<S>> || uses_tiles(k, n) ? 0 : k * round_up(n, kPanel);
}
template <class S>
DYNROUTE_INLINE Pointwise<Compute<S>> unpacked(const Pointwise<S>& weights, [[maybe_unused]] Compute<S>* memory) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    return weights;
  } else {
    if (uses_tiles(weights.k, weights.n))
      return {reinterpret_cast<const Compute<S>*>(weights.panels), weights.shift, weights.k, weights.n};
    const int64_t size = unpacked_size<S>(weights.k, weights.n);
    constexpr int width = Vec<Compute<S>>::width;
    static_assert(kPanel % width == 0, "a panel is a whole number of vectors");
    for (int64_t i = 0; i < size; i += width) load(weights.panels + i).store(memory + i);
    return {memory, weights.shift, weights.k, weights.n};
  }
}

// Row y of X [h, w, c] from its sources.
template <class S, class O>
void pull_row(const Sources<S>& sources, int h, int w, int c, int y, O* out /* [w, c] */);

template <class T>
void sepconv(const SepconvJob<T>& job, int band);
template <class T>
void transform(const TransformJob<T>& job, int tile);
template <class T>
void aggregate(const AggregateJob<T>& job, int band);
template <class T>
void gate(const GateJob<T>& job, int band);
template <class T>
void upsample(const UpsampleJob<T>& job, int band);
template <class T>
void train_forward(const TrainForwardJob<T>& job, int task);
template <class T>
void train_apply(const TrainApplyJob<T>& job, int task);
template <class T>
void train_sums(const TrainSumsJob<T>& job, int task);
template <class T>
void train_product(const TrainProductJob<T>& job, int task);
template <class T>
void train_outer(const TrainOuterJob<T>& job, int task);
template <class T>
void train_depthwise(const TrainDepthwiseJob<T>& job, int task);
template <class T>
void train_paths(const TrainPathsJob<T>& job, int task);
template <class T>
void train_paths_backward(const TrainPathsBackwardJob<T>& job, int task);
template <class T>
void upsampled_loss(const UpsampledLossJob<T>& job, int task);
template <class T>
void aggregate_backward(const AggregateBackwardJob<T>& job, int task);
template <class T>
void gate_quarter(const GateQuarterJob<T>& job, int task);
template <class T>
void gate_pool(const GatePoolJob<T>& job, int task);
template <class T>
void gate_product(const GateProductJob<T>& job, int task);
template <class T>
double fma_loop(int64_t iterations);
double tile_loop(int64_t iterations);

// Stretches of memory to be prefetched, taken a piece at a time.
class Prefetch {
 public:
  void clear() { count_ = current_ = 0; }
  DYNROUTE_INLINE void add(const void* begin, int64_t bytes) {
    if (begin && bytes > 0 && count_ < 4) range_[count_++] = {static_cast<const char*>(begin), bytes};
  }
  // The next `bytes`, or null when all has been taken.
  DYNROUTE_INLINE const void* take(int64_t bytes) {
    if (current_ == count_) return nullptr;
    Range& range = range_[current_];
    const char* begin = range.begin;
    range.begin += bytes, range.bytes -= bytes;
    if (range.bytes <= 0) ++current_;
    return begin;
  }

 private:
  struct Range {
    const char* begin;
    int64_t bytes;
  } range_[4];
  int count_ = 0, current_ = 0;
};

// This thread's memory for `count` values.
template <class T>
DYNROUTE_INLINE T* scratch(int64_t count) {
  return static_cast<T*>(thread_scratch(size_t(count) * sizeof(T)));
}

// Several parts of it, with a border behind each for AddressSanitizer to watch (guard.h).
template <class T>
class ScratchParts {
 public:
  DYNROUTE_INLINE ScratchParts(int parts, int64_t count) : next_(scratch<T>(count + parts * guard::kFloats)) {}
  DYNROUTE_INLINE T* take(int64_t count) {
    T* part = next_;
    next_ += count + guard::kFloats;
    guard::forbid(part + count, size_t(guard::kFloats) * sizeof(T));
    return part;
  }

 private:
  T* next_;
};

// Panel rows are 64 bytes longer than they need be, so that rows of a power of two do not fall into one cache set.
template <class T>
constexpr int64_t panel_stride(int k) {
  return round_up(k, kPanel) + kPanel;
}

DYNROUTE_INLINE void count(int64_t* counter, int64_t macs) {
  if (counter) __atomic_fetch_add(counter, macs, __ATOMIC_RELAXED);
}

}  // namespace dynroute::DYNROUTE_TARGET

// Kernels exist for maps of floats and of bfloat16, and portable ones for double.
#define DYNROUTE_INSTANTIATE_FLOATS(kernel, Args)       \
  template void kernel<float>(const Args<float>&, int); \
  template void kernel<bf16>(const Args<bf16>&, int);
#if defined(DYNROUTE_TARGET_PORTABLE)
#define DYNROUTE_INSTANTIATE(kernel, Args)  \
  DYNROUTE_INSTANTIATE_FLOATS(kernel, Args) \
  template void kernel<double>(const Args<double>&, int);
#else
#define DYNROUTE_INSTANTIATE(kernel, Args) DYNROUTE_INSTANTIATE_FLOATS(kernel, Args)
#endif
