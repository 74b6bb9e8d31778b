// transform: check, pack, allocate, launch.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "bind.h"
#include "cpu/kernels/tasks_of_jobs.h"
#include "packed_weights.h"

namespace dynroute {
namespace {

template <class T>
Tensor run_transform(const Tensor& x_in, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                     const Mask& open, int stride) {
  const Tensor x = nhwc(x_in);
  const TorchParallel parallel;
  CallCounters counters;
  const int n_out = int(weight.size(0)), c = int(x.size(1));
  const int64_t pixels = int64_t(strided(int(x.size(2)), stride)) * strided(int(x.size(3)), stride);
  PackedWeights<T> packed(PackedWeights<T>::pointwise_size(n_out, c), pixels);
  const Values<T> weights(weight), scales(scale), shifts(shift);
  TransformJob<T> job = {};
  job.pointwise = packed.pointwise(weights.data(), scales.data(), shifts.data(), n_out, c);
  packed.run(parallel);
  job.h_in = int(x.size(2)), job.w_in = int(x.size(3));
  job.h_out = strided(job.h_in, stride), job.w_out = strided(job.w_in, stride);
  job.stride = stride;
  job.relu_input = job.relu = true;
  job.macs = counters.macs;
  const int64_t in_size = int64_t(job.h_in) * job.w_in * c, out_size = int64_t(job.h_out) * job.w_out * n_out;
  Tensor out = new_tensor({x.size(0), n_out, job.h_out, job.w_out}, x.scalar_type(), true);
  TaskList list;
  for (int64_t i = 0; i < x.size(0); ++i) {
    job.x = x.template const_data_ptr<T>() + i * in_size;
    job.out = out.template mutable_data_ptr<T>() + i * out_size;
    if (open[i]) list.add(kernels_for<T>(pixels).transform, job, cuts::transform_tasks(job));
    else list.add([to = job.out, out_size](int) { std::memset(to, 0, size_t(out_size) * sizeof(T)); }, 1);
  }
  Runner(parallel).run(list);
  return out;
}

Tensor transform(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                 const std::optional<Tensor>& open, int64_t stride) {
  const ScalarType type = check_transform(x, weight, scale, shift, open, stride, kOnCpu);
  const Mask mask("transform: open", open, x.size(0));
  return with_type(type,
                   [&](auto t) { return run_transform<decltype(t)>(x, weight, scale, shift, mask, int(stride)); });
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) { m.impl("transform", TORCH_BOX(&dynroute::transform)); }
