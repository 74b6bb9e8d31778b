// gate, route and aggregate: check, allocate, launch.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bind.h"
#include "cpu/network/gate_end.h"

namespace dynroute {
namespace {

template <class T>
Tensor run_gate(const Tensor& x_in, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                const Tensor& fc_weight, const Tensor& fc_bias, Activation activation, bool small,
                const Mask& present) {
  const Tensor x = nhwc(x_in);
  const TorchParallel parallel;
  CallCounters counters;
  const int64_t n = x.size(0);
  const int c = int(x.size(1)), h = int(x.size(2)), w = int(x.size(3)), channels = int(weight.size(0)),
            gates = int(fc_weight.size(0));
  const int64_t pixels = int64_t(plan::gate_height(h, small)) * plan::gate_height(w, small);
  Packed<T> packed(Packed<T>::pointwise_size(channels, c), pixels);
  const Values<T> weights(weight), scales(scale), shifts(shift), fc_weights(fc_weight), fc_biases(fc_bias);
  GateJob<T> job = {};
  job.pointwise = packed.pointwise(weights.data(), scales.data(), shifts.data(), channels, c);
  packed.run(parallel);
  job.h = h, job.w = w, job.small = small;
  job.macs = counters.macs;
  const int bands = plan::gate_tasks(h, w, small);
  const int64_t stride = round_up(channels, kPanel);
  Tensor partials = new_tensor({n, bands, stride}, x.scalar_type());
  T* sums = partials.template mutable_data_ptr<T>();
  TaskList list;
  for (int64_t i = 0; i < n; ++i) {
    if (!present[i]) continue;
    job.x = x.template const_data_ptr<T>() + i * int64_t(h) * w * c;
    job.partials = sums + i * bands * stride;
    list.add(kernels_for<T>(pixels).gate, job, bands);
  }
  Runner(parallel).run(list);
  Tensor alphas = new_tensor({n, gates}, x.scalar_type());
  T* out = alphas.template mutable_data_ptr<T>();
  for (int64_t i = 0; i < n; ++i, out += gates) {
    if (present[i]) {
      finish_gate(sums + i * bands * stride, bands, int(stride), channels, pixels, fc_weights.data(), fc_biases.data(),
                  gates, activation, out);
      *counters.macs += int64_t(channels) * gates;
    } else {
      std::fill(out, out + gates, T(0));
    }
  }
  return alphas;
}

Activation parse_activation(const std::string& name) {
  if (name == "tanh") return Activation::kTanh;
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "softmax") return Activation::kSoftmax;
  throw std::runtime_error("gate: activation: wanted 'tanh', 'sigmoid' or 'softmax', got '" + name + "'");
}

Tensor gate(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift, const Tensor& fc_weight,
            const Tensor& fc_bias, const std::string& activation, bool small, const std::optional<Tensor>& present) {
  const ScalarType type = check_floating("gate: x", x);
  check("gate: x", x, type, {-1, -1, -1, -1});
  check_channels("gate: x", x.size(1), 8);
  const int64_t least = small ? 4 : 1;
  require(x.size(2) >= least && x.size(3) >= least, "gate: x: wanted a map of at least " + std::to_string(least) + "x" +
                                                        std::to_string(least) + ", got " + shape_text(x.sizes()));
  check("gate: weight", weight, type, {-1, x.size(1), 1, 1});
  const int64_t channels = weight.size(0);
  check("gate: scale", scale, type, {channels});
  check("gate: shift", shift, type, {channels});
  check("gate: fc_weight", fc_weight, type, {-1, channels, 1, 1});
  check("gate: fc_bias", fc_bias, type, {fc_weight.size(0)});
  const Activation kind = parse_activation(activation);
  const Mask mask("gate: present", present, x.size(0));
  return with_type(type, [&](auto t) {
    return run_gate<decltype(t)>(x, weight, scale, shift, fc_weight, fc_bias, kind, small, mask);
  });
}

template <class T>
Tensor run_aggregate(const std::optional<Tensor>& down, const std::optional<Tensor>& keep,
                     const std::optional<Tensor>& up, const Tensor& alphas_in, int64_t n, int64_t c, int64_t h,
                     int64_t w, ScalarType type) {
  const TorchParallel parallel;
  CallCounters counters;
  const Values<T> alphas(alphas_in);
  std::optional<Tensor> kept[3];  // up, keep, down as NHWC
  const T* data[3] = {};
  const std::optional<Tensor>* sources[3] = {&up, &keep, &down};
  for (int p = 0; p < 3; ++p)
    if (*sources[p]) kept[p] = nhwc(**sources[p]), data[p] = kept[p]->template const_data_ptr<T>();
  Tensor out = new_tensor({n, c, h, w}, type, true);
  AggregateJob<T> job = {};
  job.h = int(h), job.w = int(w), job.c = int(c);
  const int64_t size = h * w * c;
  TaskList list;
  for (int64_t i = 0; i < n; ++i) {
    const T* alpha = alphas.data() + 3 * i;
    job.sources.up = data[kUp] ? data[kUp] + i * size / 4 : nullptr;
    job.sources.keep = data[kKeep] ? data[kKeep] + i * size : nullptr;
    job.sources.down = data[kDown] ? data[kDown] + i * size : nullptr;
    job.sources.up_weight = data[kUp] ? alpha[kUp] : T(0);
    job.sources.keep_weight = data[kKeep] ? alpha[kKeep] : T(0);
    job.sources.down_weight = data[kDown] ? alpha[kDown] : T(0);
    job.out = out.template mutable_data_ptr<T>() + i * size;
    list.add(kernels<T>().aggregate, job, plan::aggregate_tasks(job));
  }
  Runner(parallel).run(list);
  return out;
}

Tensor aggregate(const std::optional<Tensor>& down, const std::optional<Tensor>& keep, const std::optional<Tensor>& up,
                 const Tensor& alphas) {
  const std::optional<Tensor>& first = down ? down : keep ? keep : up;
  require(first.has_value(), "aggregate: down, keep, up: wanted at least one source, got none");
  const ScalarType type = check_floating("aggregate: alphas", alphas);
  const int factor = down || keep ? 1 : 2;
  check(down ? "aggregate: down" : keep ? "aggregate: keep" : "aggregate: up", *first, type, {-1, -1, -1, -1});
  const int64_t n = first->size(0), c = first->size(1), h = first->size(2) * factor, w = first->size(3) * factor;
  check_channels("aggregate: sources", c, 4);
  require(h > 0 && w > 0, "aggregate: sources: wanted maps of at least 1x1, got " + shape_text(first->sizes()));
  check("aggregate: alphas", alphas, type, {n, 3});
  if (keep) check("aggregate: keep", *keep, type, {n, c, h, w});
  if (up) {
    require(h % 2 == 0 && w % 2 == 0,
            "aggregate: up: wanted an output of even size, got " + std::to_string(h) + "x" + std::to_string(w));
    check("aggregate: up", *up, type, {n, c, h / 2, w / 2});
  }
  return with_type(type, [&](auto t) { return run_aggregate<decltype(t)>(down, keep, up, alphas, n, c, h, w, type); });
}

using Routes = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
void run_route(int64_t n, const T* alphas, const bool* present, const bool* exists, const int32_t* slots, T* masked,
               int32_t* open /* [4][n] */, int32_t* open_count, int32_t* path_open /* [4][3][n] */, int32_t* path_count,
               bool* closed, bool* next_present, int32_t* next_slots) {
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
      closed[at] = present[at] && is_closed(alpha);
      const bool is_open = present[at] && !closed[at];
      next_slots[at] = is_open ? 1 - slots[at] : slots[at];
      if (is_open) open[s * n + open_count[s]++] = int32_t(i);
      for (int p = 0; p < kPaths; ++p) {
        const int list = s * kPaths + p, target = s + p - 1;  // up leads to s - 1, keep to s, down to s + 1
        if (!exists[list]) continue;
        if (is_open && path_is_open(alpha[p])) path_open[list * n + path_count[list]++] = int32_t(i);
        if (target >= 0 && target < kScales && (p == kKeep ? present[at] : is_open))
          next_present[i * kScales + target] = true;
      }
    }
}

Routes route(const Tensor& alphas, const Tensor& present, const Tensor& path_exists, const Tensor& slots) {
  const ScalarType type = check_floating("route: alphas", alphas);
  check("route: alphas", alphas, type, {-1, kScales, kPaths});
  const int64_t n = alphas.size(0);
  check("route: present", present, ScalarType::Bool, {n, kScales});
  check("route: path_exists", path_exists, ScalarType::Bool, {kScales, kPaths});
  check("route: slots", slots, ScalarType::Int, {n, kScales});
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

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  m.impl("gate", TORCH_BOX(&dynroute::gate));
  m.impl("route", TORCH_BOX(&dynroute::route));
  m.impl("aggregate", TORCH_BOX(&dynroute::aggregate));
}
