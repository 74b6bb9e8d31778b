// [ReLU] -> 1x1 (stride 1 or 2) -> shift -> [ReLU].
// Unit of work: a run of output pixels, in tiles. Where the input can be used as it lies (stride 1, no ReLU) the
// product reads it in place; else the tile's pixels go through a panel in L1/L2 first: only pixels that are used are
// read.
#include "pixels.h"
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {

template <class S>
void transform(const TransformJob<S>& job, int task) {
  using T = Compute<S>;
  const int all = job.h_out * job.w_out, per_task = cuts::transform_pixels(job.h_out, job.w_out);
  const int begin = task * per_task, end = min(begin + per_task, all);
  const int k = job.pointwise.k, n = job.pointwise.n;
  const bool tiled = uses_tiles(k, n), in_place = !tiled && std::is_same_v<S, T> && job.stride == 1 && !job.relu_input;
  const int tile = tiled ? 64 : k <= 128 ? 60 : 120;
  T* widened = scratch<T>(unpacked_size<S>(k, n) + (in_place ? 0 : Pixels<S>::size(k, n, tile)));
  Pixels<S> pixels(widened + unpacked_size<S>(k, n), k, n, tile);
  const Pointwise<T> weights = unpacked(job.pointwise, widened);
  const TileScope scope(tiled);
  for (int p = begin; p < end; p += tile) {
    const int m = min(tile, end - p);
    const auto at = [&](int pixel) {
      const int y = pixel / job.w_out, x = pixel % job.w_out;
      return job.x + (int64_t(y) * job.stride * job.w_in + x * job.stride) * k;
    };
    for (int i = 0; !in_place && i < m;) {
      const int run = job.stride == 1 ? m : min(m - i, job.w_out - (p + i) % job.w_out);  // evenly apart
      pixels.take(at(p + i), int64_t(job.stride) * k, i, run, job.relu_input);
      i += run;
    }
    // next to be read: in place all of it, at stride 2 every other row
    const void* prefetch = p + tile < end ? at(p + tile) : nullptr;
    PointwiseArgs<T, S> args = {pixels.rows(), pixels.stride(), m,       weights, job.out + int64_t(p) * n,
                                nullptr,       job.relu,        nullptr, prefetch};
    args.tiles = pixels.tiles();
    if constexpr (std::is_same_v<S, T>)
      if (in_place) args.a = job.x + int64_t(p) * k, args.lda = k;
    product<S>(args);
  }
  count(job.macs, int64_t(end - begin) * k * n);
}

DYNROUTE_INSTANTIATE(transform, TransformJob)

}  // namespace dynroute::DYNROUTE_TARGET
