// route: check, allocate, and the rules of routing for every sample.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "bind.h"
#include "contract/routing.h"

namespace dynroute {
namespace {

using Routes = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
void run_route(int64_t n, const T* alphas, const bool* present, const bool* exists, const int32_t* slots, T* masked,
               int32_t* open /* [kScales][n] */, int32_t* open_count, int32_t* path_open /* [kScales][kPaths][n] */,
               int32_t* path_count, bool* closed, bool* next_present, int32_t* next_slots) {
  std::fill(open, open + kScales * n, -1);
  std::fill(open_count, open_count + kScales, 0);
  std::fill(path_open, path_open + kScales * kPaths * n, -1);
  std::fill(path_count, path_count + kScales * kPaths, 0);
  std::fill(next_present, next_present + n * kScales, false);
  for (int64_t i = 0; i < n; ++i)
    for (int s = 0; s < kScales; ++s) {
      const int64_t at = i * kScales + s;
      T* alpha = masked + at * kPaths;
      for (int p = 0; p < kPaths; ++p)
        alpha[p] = present[at] && exists[s * kPaths + p] ? alphas[at * kPaths + p] : T(0);
      const Route<T> route = route_of(alpha);
      closed[at] = present[at] && route.closed;
      const bool is_open = present[at] && !closed[at];
      next_slots[at] = is_open ? 1 - slots[at] : slots[at];
      if (is_open) open[s * n + open_count[s]++] = int32_t(i);
      for (int p = 0; p < kPaths; ++p) {
        const int list = s * kPaths + p, target = target_scale(s, p);
        if (is_open && exists[list] && route.weight[p] != 0) path_open[list * n + path_count[list]++] = int32_t(i);
        if (target >= 0 && target < kScales && hands_on(p, exists[list], present[at], closed[at]))
          next_present[i * kScales + target] = true;
      }
    }
}

Routes route(const Tensor& alphas, const Tensor& present, const Tensor& path_exists, const Tensor& slots) {
  const ScalarType type = check_route(alphas, present, path_exists, slots, kOnCpu);
  const int64_t n = alphas.size(0);
  Tensor masked = new_tensor({n, kScales, kPaths}, type);
  Tensor open = new_tensor({kScales, n}, ScalarType::Int), open_count = new_tensor({kScales}, ScalarType::Int);
  Tensor path_open = new_tensor({kScales, kPaths, n}, ScalarType::Int),
         path_count = new_tensor({kScales, kPaths}, ScalarType::Int);
  Tensor closed = new_tensor({n, kScales}, ScalarType::Bool), next_present = new_tensor({n, kScales}, ScalarType::Bool);
  Tensor next_slots = new_tensor({n, kScales}, ScalarType::Int);
  const Tensor a = torch::stable::contiguous(alphas), p = torch::stable::contiguous(present);
  const Tensor e = torch::stable::contiguous(path_exists), s = torch::stable::contiguous(slots);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    run_route<T>(n, a.const_data_ptr<T>(), static_cast<const bool*>(p.const_data_ptr()),
                 static_cast<const bool*>(e.const_data_ptr()), s.const_data_ptr<int32_t>(),
                 masked.mutable_data_ptr<T>(), open.mutable_data_ptr<int32_t>(), open_count.mutable_data_ptr<int32_t>(),
                 path_open.mutable_data_ptr<int32_t>(), path_count.mutable_data_ptr<int32_t>(),
                 static_cast<bool*>(closed.mutable_data_ptr()), static_cast<bool*>(next_present.mutable_data_ptr()),
                 next_slots.mutable_data_ptr<int32_t>());
    return masked;
  });
  return {masked, open, open_count, path_open, path_count, closed, next_present, next_slots};
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) { m.impl("route", TORCH_BOX(&dynroute::route)); }
