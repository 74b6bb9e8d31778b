// The kernels of one target, as a table.
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

template <class T>
constexpr Kernels<T> table = {&sepconv<T>, &transform<T>, &aggregate<T>, &gate<T>, &upsample<T>, &fma_loop<T>};

}  // namespace

const Kernels<float>& float_kernels() { return table<float>; }
#if defined(DYNROUTE_TARGET_PORTABLE)
const Kernels<double>& double_kernels() { return table<double>; }
#endif

}  // namespace dynroute::DYNROUTE_TARGET
