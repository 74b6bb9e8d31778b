// The gate's pooled features: column sums of ReLU(1x1(x) + shift), never stored as a map.
// Unit of work: a band of rows, in tiles of pixels; a tile sums into its own row and tiles are added in order, so that
// rounding stays small and depends on the shape alone. The small gate's pixels are means of 2x2 input pixels (what
// bilinear x1/4 comes to), made in a panel in L1.
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {

template <class T>
void gate(const GateJob<T>& job, int band) {
  const int h = plan::gate_height(job.h, job.small), w = plan::gate_height(job.w, job.small);
  const int rows = plan::gate_rows(job.h, job.w, job.small);
  const int begin = band * rows * w, end = least((band + 1) * rows, h) * w;
  const int k = job.pointwise.k, n = job.pointwise.n, columns = int(round_up(n, kPanel)), tile = 64;
  const int64_t stride = job.small ? panel_stride<T>(k) : k;
  T* sums = scratch<T>(columns + (job.small ? tile * stride : 0));
  T* panel = sums + columns;
  T* partial = job.partials + int64_t(band) * columns;
  for (int c = 0; c < columns; ++c) partial[c] = 0;
  for (int p = begin; p < end; p += tile) {
    const int m = least(tile, end - p);
    for (int i = 0; job.small && i < m; ++i) {
      const int y = (p + i) / w, x = (p + i) % w;
      const T* top = job.x + (int64_t(4 * y + 1) * job.w + 4 * x + 1) * k;
      const T* bottom = top + int64_t(job.w) * k;
      T* to = panel + i * stride;
      for_channels<T>(k, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
        store(to + c,
              Vec<T>::set(T(0.25)) * ((load(top + c) + load(top + k + c)) + (load(bottom + c) + load(bottom + k + c))));
      });
    }
    for (int c = 0; c < columns; ++c) sums[c] = 0;
    const T* a = job.small ? panel : job.x + int64_t(p) * k;
    pointwise<T>({a, stride, m, job.pointwise, nullptr, nullptr, true, sums});
    for (int c = 0; c < columns; ++c) partial[c] += sums[c];
  }
  count(job.macs, int64_t(end - begin) * k * n);
}

DYNROUTE_INSTANTIATE(gate, GateJob)

}  // namespace dynroute::DYNROUTE_TARGET
