// gate: check, pack, allocate, launch.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "bind.h"
#include "cpu/kernels/gate_epilogue.h"
#include "cpu/kernels/tasks_of_jobs.h"
#include "packed_weights.h"

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
  const int64_t pixels = int64_t(gate_side(h, small)) * gate_side(w, small);
  PackedWeights<T> packed(PackedWeights<T>::pointwise_size(channels, c), pixels);
  const Values<T> weights(weight), scales(scale), shifts(shift), fc_weights(fc_weight), fc_biases(fc_bias);
  GateJob<T> job = {};
  job.pointwise = packed.pointwise(weights.data(), scales.data(), shifts.data(), channels, c);
  packed.run(parallel);
  job.h = h, job.w = w, job.small = small;
  job.macs = counters.macs;
  const int bands = cuts::gate_tasks(h, w, small);
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

Tensor gate(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift, const Tensor& fc_weight,
            const Tensor& fc_bias, const std::string& activation, bool small, const std::optional<Tensor>& present) {
  const ScalarType type = check_gate(x, weight, scale, shift, fc_weight, fc_bias, small, present, kOnCpu);
  const Activation kind = parse_activation("gate", activation);
  const Mask mask("gate: present", present, x.size(0));
  return with_type(type, [&](auto t) {
    return run_gate<decltype(t)>(x, weight, scale, shift, fc_weight, fc_bias, kind, small, mask);
  });
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) { m.impl("gate", TORCH_BOX(&dynroute::gate)); }
