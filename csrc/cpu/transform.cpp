// [ReLU] -> 1x1 (stride 1 or 2) -> shift -> [ReLU].
// Unit of work: a run of output pixels, in tiles. Where the input can be used as it lies (stride 1, no ReLU) the
// product reads it in place; else the tile's pixels go through a panel in L1/L2 first: only pixels that are used are
// read.
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {

template <class S>
void transform(const TransformJob<S>& job, int task) {
  using T = Compute<S>;
  const int pixels = job.h_out * job.w_out, per_task = plan::transform_pixels(job.h_out, job.w_out);
  const int begin = task * per_task, end = least(begin + per_task, pixels);
  const int k = job.pointwise.k, n = job.pointwise.n, tile = k <= 128 ? 60 : 120;
  const bool in_place = std::is_same_v<S, T> && job.stride == 1 && !job.relu_input;
  const int64_t stride = in_place ? k : panel_stride<T>(k);
  T* widened = scratch<T>(unpacked_size<S>(k, n) + (in_place ? 0 : tile * stride));
  T* panel = widened + unpacked_size<S>(k, n);
  const Pointwise<T> weights = unpacked(job.pointwise, widened);
  for (int p = begin; p < end; p += tile) {
    const int m = least(tile, end - p);
    for (int i = 0; !in_place && i < m; ++i) {
      const int y = (p + i) / job.w_out, x = (p + i) % job.w_out;
      const S* from = job.x + (int64_t(y) * job.stride * job.w_in + x * job.stride) * k;
      T* to = panel + i * stride;
      for_channels<T>(k, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
        store(to + c, job.relu_input ? relu(load(from + c)) : load(from + c));
      });
    }
    const T* a = panel;
    if constexpr (std::is_same_v<S, T>) a = in_place ? job.x + int64_t(p) * k : panel;
    // the next tile's pixels: in place all of them, at stride 2 those of every other row
    const void* soon = nullptr;
    if (p + tile < end) {
      const int next = p + tile, y = next / job.w_out, x = next % job.w_out;
      soon = job.x + (int64_t(y) * job.stride * job.w_in + x * job.stride) * k;
    }
    pointwise<T, S>({a, stride, m, weights, job.out + int64_t(p) * n, nullptr, job.relu, nullptr, soon});
  }
  count(job.macs, int64_t(end - begin) * k * n);
}

DYNROUTE_INSTANTIATE(transform, TransformJob)

}  // namespace dynroute::DYNROUTE_TARGET
