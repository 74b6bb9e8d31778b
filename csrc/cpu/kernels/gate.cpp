// The gate's pooled features: column sums of ReLU(1x1(x) + shift), never stored as a map.
// Unit of work: a band of rows, in tiles of a row's pixels; a tile (several short rows, for the small gate) has sums of
// its own and tiles are added in order, so that rounding stays small and depends on the shape alone. X is pulled row by
// row where it is not stored: a gate reads the sources, and nothing is written but its sums. The small gate's pixels
// are means of 2x2 input pixels (what bilinear x1/4 comes to), made in a panel in L1.
#include "pixels.h"
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

// Rows of X, pulled as they are asked for in rising order; two of them are kept.
template <class S>
class PulledRows {
  using T = Compute<S>;

 public:
  PulledRows(const GateJob<S>& job, T* memory /* [2, w, k], unused where x can be read as it is */)
      : job_(job), size_(int64_t(job.w) * job.pointwise.k), memory_(memory) {
    if (job.x) sources_.keep = job.x, sources_.keep_weight = 1;
    else sources_ = job.sources;
  }
  static bool needs_memory(const GateJob<S>& job) { return !job.x || !std::is_same_v<S, T>; }
  const T* row(int y) {
    if constexpr (std::is_same_v<S, T>)
      if (job_.x) return job_.x + y * size_;
    T* to = memory_ + y % 2 * size_;
    if (held_[y % 2] != y) pull_row(sources_, job_.h, job_.w, job_.pointwise.k, y, to), held_[y % 2] = y;
    return to;
  }

 private:
  const GateJob<S>& job_;
  Sources<S> sources_ = {};
  const int64_t size_;
  T* memory_;
  int held_[2] = {-1, -1};
};

}  // namespace

template <class S>
void gate(const GateJob<S>& job, int band) {
  using T = Compute<S>;
  const int h = gate_side(job.h, job.small), w = gate_side(job.w, job.small);
  const int rows = cuts::gate_rows(job.h, job.w, job.small);
  const int begin = band * rows, end = min((band + 1) * rows, h);
  const int k = job.pointwise.k, n = job.pointwise.n, columns = int(round_up(n, kPanel)), tile = 64;
  const bool in_place = !job.small && !uses_tiles(k, n);
  const int64_t widened = unpacked_size<S>(k, n), panel_size = in_place ? 0 : Pixels<S>::size(k, n, tile);
  const int64_t pulled_size = PulledRows<S>::needs_memory(job) ? 2 * int64_t(job.w) * k : 0;
  ScratchParts<T> parts(4, columns + widened + panel_size + pulled_size);
  T* sums = parts.take(columns);
  Pixels<S> pixels(parts.take(panel_size), k, n, tile);
  const TileScope scope(pixels.tiled());
  const Pointwise<T> weights = unpacked(job.pointwise, parts.take(widened));
  PulledRows<S> x(job, parts.take(pulled_size));
  T* partial = job.partials + int64_t(band) * columns;
  for (int c = 0; c < columns; ++c) partial[c] = 0;
  // short rows share a panel: on the smallest maps the weights are most of the work
  const int group = job.small ? max(1, tile / w) : 1;
  for (int y = begin; y < end; y += group)
    for (int at = 0; at < w; at += tile) {
      const int width = min(tile, w - at), m = min(group, end - y) * width;
      PointwiseArgs<T> args = {pixels.rows(), pixels.stride(), m, weights, nullptr, nullptr, true, sums};
      args.tiles = pixels.tiles();
      if (job.small) {
        pixels.make(0, m, [&](int first, int some, T* to) {
          for (int i = first; i < first + some; ++i, to += pixels.stride()) {
            const int source = 4 * (y + i / width);
            const T *top = x.row(source + 1), *bottom = x.row(source + 2);
            const int64_t from = (int64_t(4) * (at + i % width) + 1) * k;
            for_channels<T>(k, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
              const T *p = top + from + c, *q = bottom + from + c;
              store(to + c, Vec<T>::set(T(0.25)) * ((load(p) + load(p + k)) + (load(q) + load(q + k))));
            });
          }
        });
      } else if (in_place) {
        args.a = x.row(y) + int64_t(at) * k, args.lda = k;
      } else {
        pixels.take(x.row(y) + int64_t(at) * k, k, 0, m, false);
      }
      for (int c = 0; c < columns; ++c) sums[c] = 0;
      product<S>(args);
      for (int c = 0; c < columns; ++c) partial[c] += sums[c];
    }
  count(job.macs, int64_t(end - begin) * w * k * n);
}

DYNROUTE_INSTANTIATE(gate, GateJob)

}  // namespace dynroute::DYNROUTE_TARGET
