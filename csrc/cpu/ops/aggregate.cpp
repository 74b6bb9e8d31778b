// aggregate: check, allocate, launch.
#include <torch/csrc/stable/library.h>

#include "bind.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/tasks_of_jobs.h"

namespace dynroute {
namespace {

template <class T>
Tensor run_aggregate(const std::optional<Tensor>& down, const std::optional<Tensor>& keep,
                     const std::optional<Tensor>& up, const Tensor& alphas_in, int64_t n, int64_t c, int64_t h,
                     int64_t w, ScalarType type) {
  const TorchParallel parallel;
  CallCounters counters;
  const Values<T> alphas(alphas_in);
  std::optional<Tensor> kept[kPaths];  // as NHWC
  const T* data[kPaths] = {};
  const std::optional<Tensor>* sources[kPaths] = {};
  sources[kUp] = &up, sources[kKeep] = &keep, sources[kDown] = &down;
  for (int p = 0; p < kPaths; ++p)
    if (*sources[p]) kept[p] = nhwc(**sources[p]), data[p] = kept[p]->template const_data_ptr<T>();
  Tensor out = new_tensor({n, c, h, w}, type, true);
  AggregateJob<T> job = {};
  job.h = int(h), job.w = int(w), job.c = int(c);
  const int64_t size = h * w * c;
  TaskList list;
  for (int64_t i = 0; i < n; ++i) {
    const T* alpha = alphas.data() + i * kPaths;
    job.sources.up = data[kUp] ? data[kUp] + i * size / 4 : nullptr;
    job.sources.keep = data[kKeep] ? data[kKeep] + i * size : nullptr;
    job.sources.down = data[kDown] ? data[kDown] + i * size : nullptr;
    job.sources.up_weight = data[kUp] ? alpha[kUp] : T(0);
    job.sources.keep_weight = data[kKeep] ? alpha[kKeep] : T(0);
    job.sources.down_weight = data[kDown] ? alpha[kDown] : T(0);
    job.out = out.template mutable_data_ptr<T>() + i * size;
    list.add(kernels<T>().aggregate, job, cuts::aggregate_tasks(job));
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
  check("aggregate: alphas", alphas, type, {n, kPaths});
  if (keep) check("aggregate: keep", *keep, type, {n, c, h, w});
  if (up) {
    require(h % 2 == 0 && w % 2 == 0,
            "aggregate: up: wanted an output of even size, got " + std::to_string(h) + "x" + std::to_string(w));
    check("aggregate: up", *up, type, {n, c, h / 2, w / 2});
  }
  return with_type(type, [&](auto t) { return run_aggregate<decltype(t)>(down, keep, up, alphas, n, c, h, w, type); });
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) { m.impl("aggregate", TORCH_BOX(&dynroute::aggregate)); }
