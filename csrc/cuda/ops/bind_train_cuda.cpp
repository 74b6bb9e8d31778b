// The training operators on CUDA tensors: their calls' launches on the current stream of their device.
#include <utility>

#include "chain_calls.h"
#include "gate_train_call.h"
#include "node_train_call.h"
#include "run_call.h"

namespace dynroute::cuda {
namespace {

// The first argument that is a tensor, whatever comes before: it says which device.
inline const Tensor* first_tensor(const Tensor& tensor) { return &tensor; }
template <class Other>
const Tensor* first_tensor(const Other&) {
  return nullptr;
}

template <size_t>
using One = Tensor;
template <size_t... I>
std::tuple<One<I>...> as_tuple(const Tensors& outs, std::index_sequence<I...>) {
  return {outs[I]...};
}

// Outs: how many results there are.
template <size_t Outs, auto make>
struct Cuda;
template <size_t Outs, class... Args, OpCall (*make)(const Device&, const DeviceLimits&, Args...)>
struct Cuda<Outs, make> {
  static decltype(as_tuple({}, std::make_index_sequence<Outs>())) run(Args... args) {
    const Tensor* first = nullptr;
    ((first = first ? first : first_tensor(args)), ...);
    const Tensors outs = run_call("dynroute", *first, [&](const Device& device, const DeviceLimits& limits) {
      return make(device, limits, args...);
    });
    return as_tuple(outs, std::make_index_sequence<Outs>());
  }
};

}  // namespace
}  // namespace dynroute::cuda

STABLE_TORCH_LIBRARY_IMPL(dynroute, CUDA, m) {
  using namespace dynroute::cuda;
  m.impl("sepconv_train", TORCH_BOX((&Cuda<3, &sepconv_train_call>::run)));
  m.impl("sepconv_train_backward", TORCH_BOX((&Cuda<2, &sepconv_train_backward_call>::run)));
  m.impl("transform_train", TORCH_BOX((&Cuda<3, &transform_train_call>::run)));
  m.impl("transform_train_backward", TORCH_BOX((&Cuda<2, &transform_train_backward_call>::run)));
  m.impl("node_train", TORCH_BOX((&Cuda<7, &node_train_call>::run)));
  m.impl("node_train_backward", TORCH_BOX((&Cuda<3, &node_train_backward_call>::run)));
  m.impl("gate_train", TORCH_BOX((&Cuda<4, &gate_train_call>::run)));
  m.impl("gate_train_backward", TORCH_BOX((&Cuda<2, &gate_train_backward_call>::run)));
}
