// aggregate and its backward: check, allocate, launch.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bind.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/tasks_of_jobs.h"

namespace dynroute {
namespace {

using Maybe = std::optional<Tensor>;

// The sources in the order of alphas, as NHWC, and how much each weighs in a sample: all of it without alphas.
template <class T>
class GivenSources {
 public:
  GivenSources(const Maybe& down, const Maybe& keep, const Maybe& up, const Maybe& alphas, int64_t sample_size)
      : size_(sample_size) {
    if (alphas) alphas_.emplace(*alphas);
    const Maybe* given[kPaths] = {};
    given[kUp] = &up, given[kKeep] = &keep, given[kDown] = &down;
    for (int p = 0; p < kPaths; ++p)
      if (*given[p]) kept_[p] = nhwc(**given[p]);
  }
  bool has(int path) const { return kept_[path].has_value(); }
  T weight(int path, int64_t sample) const { return alphas_ ? alphas_->data()[sample * kPaths + path] : T(1); }
  const T* map(int path, int64_t sample) const {
    return has(path) ? kept_[path]->template const_data_ptr<T>() + sample * (path == kUp ? size_ / 4 : size_) : nullptr;
  }

 private:
  int64_t size_;
  std::optional<Values<T>> alphas_;
  Maybe kept_[kPaths];
};

template <class T>
Tensor run_aggregate(const Maybe& down, const Maybe& keep, const Maybe& up, const Maybe& alphas, int64_t n, int64_t c,
                     int64_t h, int64_t w, ScalarType type) {
  const TorchParallel parallel;
  CallCounters counters;
  const int64_t size = h * w * c;
  const GivenSources<T> sources(down, keep, up, alphas, size);
  Tensor out = new_tensor({n, c, h, w}, type, true);
  AggregateJob<T> job = {};
  job.h = int(h), job.w = int(w), job.c = int(c);
  TaskList list;
  for (int64_t i = 0; i < n; ++i) {
    const auto weight = [&](int path) { return sources.has(path) ? sources.weight(path, i) : T(0); };
    job.sources = {sources.map(kDown, i), sources.map(kKeep, i), sources.map(kUp, i),
                   weight(kDown),         weight(kKeep),         weight(kUp)};
    job.out = out.template mutable_data_ptr<T>() + i * size;
    list.add(kernels<T>().aggregate, job, cuts::aggregate_tasks(job));
  }
  Runner(parallel).run(list);
  return out;
}

Tensor aggregate(const Maybe& down, const Maybe& keep, const Maybe& up, const Maybe& alphas) {
  const AggregateShape shape = check_aggregate(down, keep, up, alphas, kOnCpu);
  return with_type(shape.type, [&](auto t) {
    return run_aggregate<decltype(t)>(down, keep, up, alphas, shape.n, shape.c, shape.h, shape.w, shape.type);
  });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
Gradients run_backward(const Tensor& grad_in, const Maybe& down, const Maybe& keep, const Maybe& up,
                       const Maybe& alphas, const std::vector<bool>& wanted) {
  const TorchParallel parallel;
  CallCounters counters;
  const Tensor grad = nhwc(grad_in);
  const ScalarType type = grad.scalar_type();
  const int64_t n = grad.size(0), c = grad.size(1), h = grad.size(2), w = grad.size(3), size = h * w * c;
  const Maybe none;
  const bool of_alphas = wanted[kOfAlphas];
  const GivenSources<T> sources(of_alphas ? down : none, of_alphas ? keep : none, of_alphas ? up : none, alphas, size);
  Tensor grad_down = new_tensor({wanted[kOfDown] ? n : 0, c, h, w}, type, true);
  Tensor grad_keep = new_tensor({wanted[kOfKeep] ? n : 0, c, h, w}, type, true);
  Tensor grad_up = new_tensor({wanted[kOfUp] ? n : 0, c, h / 2, w / 2}, type, true);
  Tensor grad_alphas = new_tensor({of_alphas ? n : 0, kPaths}, type);
  const auto out = [&](int which, Tensor& tensor, int64_t offset) {
    return wanted[size_t(which)] ? tensor.template mutable_data_ptr<T>() + offset : nullptr;
  };
  AggregateBackwardJob<T> job = {};
  job.h = int(h), job.w = int(w), job.c = int(c);
  const int tasks = cuts::pair_tasks(job.h, job.w, job.c);
  std::vector<double> sums(of_alphas ? size_t(n) * tasks * kPaths : 0);
  TaskList list;
  for (int64_t i = 0; i < n; ++i) {
    job.grad = grad.template const_data_ptr<T>() + i * size;
    job.sources = {sources.map(kDown, i),    sources.map(kKeep, i),    sources.map(kUp, i),
                   sources.weight(kDown, i), sources.weight(kKeep, i), sources.weight(kUp, i)};
    job.grad_down = out(kOfDown, grad_down, i * size), job.grad_keep = out(kOfKeep, grad_keep, i * size);
    job.grad_up = out(kOfUp, grad_up, i * size / 4);
    if (of_alphas) job.sums = sums.data() + i * tasks * kPaths;
    list.add(kernels_without_tiles<T>().train.aggregate, job, tasks);
  }
  Runner(parallel).run(list);
  if (of_alphas) {
    T* to = grad_alphas.template mutable_data_ptr<T>();
    for (int64_t i = 0; i < n; ++i)
      for (int path = 0; path < kPaths; ++path) {
        double sum = 0;
        for (int task = 0; task < tasks; ++task) sum += sums[size_t((i * tasks + task) * kPaths + path)];
        to[i * kPaths + path] = T(sum);
      }
  }
  return {grad_down, grad_keep, grad_up, grad_alphas};
}

Gradients aggregate_backward(const Tensor& grad, const Maybe& down, const Maybe& keep, const Maybe& up,
                             const Maybe& alphas, const std::vector<bool>& wanted) {
  const ScalarType type = check_aggregate_backward(grad, down, keep, up, alphas, wanted, kOnCpu);
  const auto run = [&](auto t) { return run_backward<decltype(t)>(grad, down, keep, up, alphas, wanted); };
  return type == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  m.impl("aggregate", TORCH_BOX(&dynroute::aggregate));
  m.impl("aggregate_backward", TORCH_BOX(&dynroute::aggregate_backward));
}
