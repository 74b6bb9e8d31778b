// The kernels of one target, as a table.
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

#if defined(DYNROUTE_TARGET_AMX)
constexpr auto tiles = &tile_loop;
#else
constexpr double (*tiles)(int64_t) = nullptr;
#endif
template <class T>
constexpr TrainKernels<T> train = {&train_forward<T>, &train_apply<T>, &train_sums<T>, &train_product<T>,
                                   &train_outer<T>, &train_depthwise<T>, &train_paths<T>, &train_paths_backward<T>,
                                   &aggregate_backward<T>, &gate_quarter<T>, &gate_pool<T>, &gate_product<T>};
template <class S>
constexpr Kernels<S> table = {&sepconv<S>, &transform<S>,     &aggregate<S>,
                              &gate<S>,    &upsample<S>,      &fma_loop<Compute<S>>,
                              tiles,       train<Compute<S>>, &upsampled_loss<Compute<S>>};

}  // namespace

const Kernels<float>& float_kernels() { return table<float>; }
const Kernels<bf16>& bf16_kernels() { return table<bf16>; }
#if defined(DYNROUTE_TARGET_PORTABLE)
const Kernels<double>& double_kernels() { return table<double>; }
#endif

}  // namespace dynroute::DYNROUTE_TARGET
