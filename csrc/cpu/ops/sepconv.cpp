// sepconv: check, pack, allocate, launch.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <vector>

#include "bind.h"
#include "cpu/kernels/tasks_of_jobs.h"
#include "cpu/planner/planner.h"
#include "packed_weights.h"

namespace dynroute {
namespace {

// Stages of one sample as jobs: one fused job, or one per stage with whole maps between.
template <class T>
void add_sample(const Kernels<T>& kernels, const SepconvJob<T>& whole, const SepconvPlan& plan, T* middle[2],
                std::vector<TaskList>& lists) {
  SepconvJob<T> job = whole;
  job.tiling = plan.tiling;
  if (plan.fused) return lists[0].add(kernels.sepconv, job, cuts::sepconv_tasks(job));
  job.stages = 1;
  job.residual = false;
  for (int k = 0; k < whole.stages; ++k) {
    const bool is_last = k == whole.stages - 1;
    job.stage[0] = whole.stage[k];
    job.x = k == 0 ? whole.x : middle[(k - 1) % 2];
    job.out = is_last ? whole.out : middle[k % 2];
    job.addend = is_last && whole.residual ? whole.x : nullptr;
    lists[size_t(k)].add(kernels.sepconv, job, cuts::sepconv_tasks(job));
  }
}

template <class T>
Tensor run_sepconv(const Tensor& x_in, const std::vector<Tensor>& depthwise, const std::vector<Tensor>& pointwise,
                   const std::vector<Tensor>& scale, const std::vector<Tensor>& shift, const Mask& open, int stride,
                   bool residual, bool final_relu) {
  const Tensor x = nhwc(x_in);
  const int64_t n = x.size(0);
  const int stages = int(depthwise.size());
  const TorchParallel parallel;
  CallCounters counters;

  int64_t packed_size = 0;
  for (int k = 0; k < stages; ++k)
    packed_size += PackedWeights<T>::depthwise_size(depthwise[k].size(0)) +
                   PackedWeights<T>::pointwise_size(pointwise[k].size(0), pointwise[k].size(1));
  const int64_t pixels = int64_t(strided(int(x.size(2)), stride)) * strided(int(x.size(3)), stride);
  PackedWeights<T> packed(packed_size, pixels);
  std::vector<Values<T>> alive;
  const auto values = [&](const Tensor& tensor) { return alive.emplace_back(tensor).data(); };
  SepconvJob<T> job = {};
  job.stages = stages;
  int h = int(x.size(2)), w = int(x.size(3)), c = int(x.size(1));
  int64_t middle_size = 0;
  for (int k = 0; k < stages; ++k) {
    const int n_out = int(pointwise[k].size(0)), step = k == 0 ? stride : 1;
    RowStage<T>& stage = job.stage[k];
    stage.depthwise = packed.depthwise(values(depthwise[k]), c);
    stage.pointwise = packed.pointwise(values(pointwise[k]), values(scale[k]), values(shift[k]), n_out, c);
    stage.c_in = c, stage.stride = step, stage.pad = 1;
    stage.h_in = h, stage.w_in = w;
    h = strided(h, step), w = strided(w, step), c = n_out;
    stage.h_out = h, stage.w_out = w;
    stage.relu = k < stages - 1 || final_relu;
    if (k < stages - 1) middle_size = std::max(middle_size, int64_t(h) * w * c);
  }
  packed.run(parallel);

  Tensor out = new_tensor({n, c, h, w}, x.scalar_type(), true);
  std::vector<int64_t> samples;
  const int64_t in_size = x.size(1) * x.size(2) * x.size(3), out_size = int64_t(h) * w * c;
  T* out_data = out.template mutable_data_ptr<T>();
  std::vector<TaskList> lists(static_cast<size_t>(stages));
  for (int64_t i = 0; i < n; ++i) {
    T* sample = out_data + i * out_size;
    if (open[i]) samples.push_back(i);
    else lists[size_t(stages) - 1].add([=](int) { std::memset(sample, 0, size_t(out_size) * sizeof(T)); }, 1);
  }
  const SepconvPlan plan =
      planner().sepconv({stages, int(x.size(1)), c, h, w, stride}, true, int(samples.size()), parallel.threads());
  const int middles = plan.fused ? 0 : std::min(stages - 1, 2);
  Tensor middle = new_tensor({int64_t(samples.size()) * middles * middle_size}, x.scalar_type());
  T* middle_data = middle.template mutable_data_ptr<T>();
  const T* x_data = x.template const_data_ptr<T>();
  for (int64_t i : samples) {
    job.x = x_data + i * in_size;
    job.out = out_data + i * out_size;
    job.residual = residual;
    job.macs = counters.macs, job.halo = counters.halo;
    T* two[2] = {middle_data, middles == 2 ? middle_data + middle_size : middle_data};
    add_sample(kernels_for<T>(pixels), job, plan, two, lists);
    middle_data += middles * middle_size;
  }
  Runner runner(parallel);
  for (TaskList& list : lists) runner.run(list);
  return out;
}

Tensor sepconv(const Tensor& x, const std::vector<Tensor>& depthwise, const std::vector<Tensor>& pointwise,
               const std::vector<Tensor>& scale, const std::vector<Tensor>& shift, const std::optional<Tensor>& open,
               int64_t stride, bool residual, bool final_relu) {
  const ScalarType type = check_sepconv(x, depthwise, pointwise, scale, shift, open, stride, residual, kOnCpu);
  static_assert(kMostStages == kMaxStages, "checks and kernels agree");
  const Mask mask("sepconv: open", open, x.size(0));
  return with_type(type, [&](auto t) {
    return run_sepconv<decltype(t)>(x, depthwise, pointwise, scale, shift, mask, int(stride), residual, final_relu);
  });
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) { m.impl("sepconv", TORCH_BOX(&dynroute::sepconv)); }
