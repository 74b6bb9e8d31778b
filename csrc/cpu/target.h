// What the kernel files of one target share: the register-blocked pointwise product, and the kernels' declarations.
#pragma once
#include "kernels.h"
#include "plan.h"
#include "simd.h"

namespace dynroute::DYNROUTE_TARGET {

// out[i, :] = [ReLU](shift + a[i, :] * panels [+ residual[i, :]]), or, if sums is set, sums += the column sums of that.
// Each output is one chain of fma over k that starts from its shift, whatever the blocking.
template <class T>
struct PointwiseArgs {
  const T* a;  // [m, k], rows lda apart
  int64_t lda;
  int m;
  const Pointwise<T>& weights;
  T* out;             // [m, n], rows n apart
  const T* residual;  // like out, or null
  bool relu;
  T* sums;  // [round_up(n, 16)] or null; rows are added in order
};
template <class T>
void pointwise(const PointwiseArgs<T>& args);

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
double fma_loop(int64_t iterations);

// This thread's memory for `count` values.
template <class T>
DYNROUTE_INLINE T* scratch(int64_t count) {
  return static_cast<T*>(thread_scratch(size_t(count) * sizeof(T)));
}

// Panel rows are 64 bytes longer than they need be, so that rows of a power of two do not fall into one cache set.
template <class T>
constexpr int64_t panel_stride(int k) {
  return round_up(k, kPanel) + kPanel;
}

DYNROUTE_INLINE void count(int64_t* counter, int64_t macs) {
  if (counter) __atomic_fetch_add(counter, macs, __ATOMIC_RELAXED);
}

}  // namespace dynroute::DYNROUTE_TARGET

// Portable kernels exist for float and double, the others for float.
#if defined(DYNROUTE_TARGET_PORTABLE)
#define DYNROUTE_INSTANTIATE(kernel, Args)              \
  template void kernel<float>(const Args<float>&, int); \
  template void kernel<double>(const Args<double>&, int);
#else
#define DYNROUTE_INSTANTIATE(kernel, Args) template void kernel<float>(const Args<float>&, int);
#endif
