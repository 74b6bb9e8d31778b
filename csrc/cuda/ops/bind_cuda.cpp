// The operators on CUDA tensors: their calls' launches on the current stream of their device.
#include <cstring>
#include <tuple>
#include <utility>

#include "calls.h"
#include "cuda/network/launch.h"
#include "cuda/network/on_device.h"

namespace dynroute::cuda {
namespace {

// The first argument that is a tensor: it says which device.
const Tensor* tensor_in(const Tensor& tensor) { return &tensor; }
const Tensor* tensor_in(const Maybe& tensor) { return tensor ? &*tensor : nullptr; }
template <class Other>
const Tensor* tensor_in(const Other&) {
  return nullptr;
}

// What a binding returns: a tensor, or several.
template <size_t>
using One = Tensor;
template <size_t... I>
std::tuple<One<I>...> as_results(const Tensors& outs, std::index_sequence<I...>) {
  return {outs[I]...};
}
inline Tensor as_results(const Tensors& outs, std::index_sequence<0>) { return outs[0]; }

// A call's launches, and between them what other processes have to say.
void run_call(const OpCall& call, const OnDevice& device) {
  std::vector<Launch> launches;
  const auto run = [&] {
    run_launches(launches, device.index(), call.dtype, device.stream());
    launches.clear();
  };
  for (const Launch& launch : call.launches) {
    if (std::strcmp(launch.kernel, kGather) != 0) {
      launches.push_back(launch);
      continue;
    }
    run();
    GatherParams p;
    std::memcpy(&p, launch.params.data(), sizeof(p));
    gather("dynroute", p.group, p.mine, p.count, p.everyone, device.index());
  }
  run();
}

template <size_t Results, auto make>
struct Operator;
template <size_t Results, class... Args, OpCall (*make)(const Device&, const DeviceLimits&, Args...)>
struct Operator<Results, make> {
  static auto run(Args... args) {
    const Tensor* first = nullptr;
    ((first = first ? first : tensor_in(args)), ...);
    require(first && first->is_cuda(), "wanted tensors on a GPU");
    const OnDevice device(*first);
    const OpCall call =
        make(Device(DeviceType::CUDA, first->get_device_index()), device_limits(device.index()), args...);
    run_call(call, device);
    return as_results(call.outs, std::make_index_sequence<Results>());
  }
};

}  // namespace
}  // namespace dynroute::cuda

STABLE_TORCH_LIBRARY_IMPL(dynroute, CUDA, m) {
  using namespace dynroute::cuda;
#define DYNROUTE_BIND(name, results) m.impl(#name, TORCH_BOX((&Operator<results, &name##_call>::run)));
  DYNROUTE_CALLS(DYNROUTE_BIND)
}

STABLE_TORCH_LIBRARY_IMPL(dynroute, CompositeExplicitAutograd, m) {
  m.impl("cuda_set_gather", TORCH_BOX(&dynroute::set_gather_function));
}
