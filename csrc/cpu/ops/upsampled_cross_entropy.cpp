// upsampled_cross_entropy: check, allocate, launch, and add up what tasks left.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bind.h"
#include "bindings/loss_checks.h"
#include "cpu/kernels/kernels.h"

namespace dynroute {
namespace {

using LossAndGradient = std::tuple<Tensor, Tensor>;

template <class T>
LossAndGradient run_loss(const std::string& op, const Tensor& logits_in, const Tensor& labels_in, int64_t factor,
                         const std::optional<Tensor>& weight_in, int64_t ignore_index, bool with_gradient) {
  const TorchParallel parallel;
  CallCounters counters;
  const ScalarType type = logits_in.scalar_type();
  const Tensor logits = nhwc(logits_in);
  const Values<int64_t> labels(labels_in);
  std::optional<Values<T>> weight;
  if (weight_in) weight.emplace(*weight_in);
  const int64_t n = logits.size(0), k = logits.size(1), h = logits.size(2), w = logits.size(3);
  const int bands = cuts::loss_bands(int(h)), tasks = int(n) * bands;
  const int64_t row_size = w * k;
  Tensor loss = new_tensor({}, type), gradient = new_tensor({with_gradient ? n : 0, k, h, w}, type, true);
  Tensor edges = new_tensor({with_gradient ? tasks * row_size : 0}, type);
  std::vector<double> losses(static_cast<size_t>(tasks));
  std::vector<int64_t> strays(static_cast<size_t>(tasks), ignore_index);

  UpsampledLossJob<T> job = {};
  job.logits = logits.template const_data_ptr<T>(), job.labels = labels.data();
  job.weight = weight ? weight->data() : nullptr;
  job.gradient = with_gradient ? gradient.template mutable_data_ptr<T>() : nullptr;
  job.edges = edges.template mutable_data_ptr<T>();
  job.losses = losses.data(), job.strays = strays.data();
  job.n = int(n), job.h = int(h), job.w = int(w), job.k = int(k), job.factor = int(factor);
  job.out_h = int(labels_in.size(1)), job.out_w = int(labels_in.size(2)), job.ignore_index = ignore_index;
  Runner runner(parallel);
  TaskList list;
  list.add(kernels_without_tiles<T>().upsampled_loss, job, tasks);
  runner.run(list);
  for (int64_t stray : strays)
    require(stray == ignore_index, op + ": labels: wanted 0.." + std::to_string(k - 1) + " or " +
                                       std::to_string(ignore_index) + " (ignore_index), got " + std::to_string(stray));
  if (with_gradient) {
    const int gaps = cuts::loss_gaps(int(h));
    list.add(
        [=](int task) {
          const int row = task % bands * gaps - 1;  // the last one of the band before
          if (row < 0) return;
          T* to = job.gradient + (int64_t(task / bands) * job.h + row) * row_size;
          const T* edge = job.edges + task * row_size;
          for (int64_t i = 0; i < row_size; ++i) to[i] += edge[i];
        },
        tasks);
    runner.run(list);
  }
  double total = 0;
  for (double of_task : losses) total += of_task;
  *loss.template mutable_data_ptr<T>() = T(total);
  return {loss, gradient};
}

LossAndGradient upsampled_cross_entropy(const Tensor& logits, const Tensor& labels, int64_t factor,
                                        std::optional<Tensor> weight, int64_t ignore_index, bool with_gradient) {
  const std::string op = "upsampled_cross_entropy";
  const ScalarType type = check_upsampled_cross_entropy(logits, labels, factor, weight, Device(DeviceType::CPU));
  const auto run = [&](auto t) {
    return run_loss<decltype(t)>(op, logits, labels, factor, weight, ignore_index, with_gradient);
  };
  return type == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace dynroute

STABLE_TORCH_LIBRARY_IMPL(dynroute, CPU, m) {
  m.impl("upsampled_cross_entropy", TORCH_BOX(&dynroute::upsampled_cross_entropy));
}
