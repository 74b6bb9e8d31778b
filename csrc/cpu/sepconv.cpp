// Stacked depthwise 3x3 -> pointwise stages, fused row by row; also the stem and the predictor (full 3x3 convolutions).
// Unit of work: a band of rows of the last stage's output. Every earlier stage keeps the few rows that the next one
// reads in a ring, so an intermediate map never leaves L2; only at band borders are rows computed twice (the halo).
// Tiling: a step makes about `tile` pixels of a stage; their depthwise goes to a panel (L1/L2) that the pointwise
// product reads at once, and the product's epilogue writes ring or output.
#include "depthwise.h"
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

// Pixels per panel: enough to reuse the weights in L1, few enough that panel and rows share L2.
inline int tile_pixels(int k) { return k <= 128 ? 64 : 128; }

// Rows of a map, or of a ring that keeps the newest `rows` of them.
template <class T>
struct RowBuffer {
  T* base;
  int rows;  // height of the map, or of the ring
  int64_t size;
  DYNROUTE_INLINE T* row(int y) const { return base + (y % rows) * size; }
};

// Columns of a full 3x3 convolution for `count` pixels: [count][9 * c_in]; taps outside the map are zeros.
template <class T>
void gather(const SepconvJob<T>& job, const RowStage<T>& stage, int y, int x, int count, T* panel, int64_t stride) {
  const int64_t plane = int64_t(stage.h_in) * stage.w_in;
  const int c_in = stage.c_in;
  for (int i = 0; i < count; ++i, panel += stride)
    for (int tap = 0; tap < 9; ++tap) {
      const int y_in = y * stage.stride - stage.pad + tap / 3, x_in = (x + i) * stage.stride - stage.pad + tap % 3;
      T* to = panel + tap * c_in;
      if (y_in < 0 || y_in >= stage.h_in || x_in < 0 || x_in >= stage.w_in) {
        for (int c = 0; c < c_in; ++c) to[c] = 0;
      } else if (job.planar) {
        const T* from = job.x + int64_t(y_in) * stage.w_in + x_in;
        for (int c = 0; c < c_in; ++c) to[c] = from[c * plane];
      } else {
        const T* from = job.x + (int64_t(y_in) * stage.w_in + x_in) * c_in;
        for_channels<T>(c_in, [&](int c, auto load, auto store) DYNROUTE_ALWAYS { store(to + c, load(from + c)); });
      }
    }
}

// Rows [y, y_end) of one stage.
template <class T>
void run_rows(const SepconvJob<T>& job, int s, const RowBuffer<const T>& in, const RowBuffer<T>& out, int y, int y_end,
              T* panel) {
  const RowStage<T>& stage = job.stage[s];
  const int n = stage.pointwise.n, tile = tile_pixels(stage.pointwise.k);
  const int64_t stride = panel_stride<T>(stage.pointwise.k);
  const T* residual = s == job.stages - 1 ? job.residual : nullptr;
  int x = 0;
  while (y < y_end) {
    // a tile: pixels whose outputs lie side by side in memory, over row ends where rows follow each other
    T* first = out.row(y) + int64_t(x) * n;
    const int64_t at = (int64_t(y) * stage.w_out + x) * n;
    int m = 0;
    do {
      const int run = least(stage.w_out - x, tile - m);
      if (stage.depthwise) {
        Rows<T> rows;
        for (int ky = 0; ky < 3; ++ky) {
          const int y_in = y * stage.stride - stage.pad + ky;
          rows.row[ky] = y_in >= 0 && y_in < stage.h_in ? in.row(y_in) : nullptr;
        }
        if (stage.stride == 1)
          depthwise_run<T, 1>(rows, stage.w_in, stage.pad, stage.c_in, stage.depthwise, x, run, panel + m * stride,
                              stride);
        else
          depthwise_run<T, 2>(rows, stage.w_in, stage.pad, stage.c_in, stage.depthwise, x, run, panel + m * stride,
                              stride);
      } else {
        gather(job, stage, y, x, run, panel + m * stride, stride);
      }
      m += run;
      x += run;
      if (x == stage.w_out) x = 0, ++y;
    } while (m < tile && y < y_end && out.row(y) == first + int64_t(m) * n);
    pointwise<T>({panel, stride, m, stage.pointwise, first, residual ? residual + at : nullptr, stage.relu, nullptr});
  }
}

}  // namespace

template <class T>
void sepconv(const SepconvJob<T>& job, int band) {
  const int last = job.stages - 1;
  const RowStage<T>* stage = job.stage;
  const int y_begin = band * job.band_rows, y_end = least(y_begin + job.band_rows, stage[last].h_out);
  const int step =
      most(1, tile_pixels(stage[last].pointwise.k) / stage[last].w_out);  // rows of the last stage at a time

  // rings: stage s holds what one step of stage s + 1 reads
  int ring_rows[3] = {}, start[3], next[3];
  int64_t ring_size = 0, panel_size = 0;
  next[last] = y_begin;
  ring_rows[last] = step;
  for (int s = last; s >= 0; --s) {
    const RowStage<T>& now = stage[s];
    if (s < last) {
      const RowStage<T>& after = stage[s + 1];
      ring_rows[s] = (ring_rows[s + 1] - 1) * after.stride + 3;
      ring_size += ring_rows[s] * int64_t(now.w_out) * now.pointwise.n;
      next[s] = most(0, next[s + 1] * after.stride - after.pad);
    }
    start[s] = next[s];
    panel_size = most(panel_size, tile_pixels(now.pointwise.k) * panel_stride<T>(now.pointwise.k));
  }
  T* panel = scratch<T>(panel_size + ring_size);
  T* free_row = panel + panel_size;
  RowBuffer<T> out[3];
  RowBuffer<const T> in[3];
  in[0] = {job.x, stage[0].h_in, int64_t(stage[0].w_in) * stage[0].c_in};
  for (int s = 0; s <= last; ++s) {
    const int64_t size = int64_t(stage[s].w_out) * stage[s].pointwise.n;
    if (s == last) {
      out[s] = {job.out, stage[s].h_out, size};
    } else {
      out[s] = {free_row, ring_rows[s], size};
      in[s + 1] = {free_row, ring_rows[s], size};
      free_row += ring_rows[s] * size;
    }
  }

  while (next[last] < y_end) {
    int want[3];
    want[last] = least(next[last] + step, y_end);
    for (int s = last - 1; s >= 0; --s)
      want[s] = least(stage[s].h_out, (want[s + 1] - 1) * stage[s + 1].stride - stage[s + 1].pad + 3);
    for (int s = 0; s <= last; ++s) {
      if (next[s] >= want[s]) continue;
      run_rows(job, s, in[s], out[s], next[s], want[s], panel);
      next[s] = want[s];
    }
  }

  // a band owns the rows of each stage that its own output rows sit on; what it made beyond them is halo
  int own_begin = y_begin, own_end = y_end;
  int64_t macs = 0, halo = 0;
  for (int s = last; s >= 0; --s) {
    const RowStage<T>& now = stage[s];
    if (s < last) {
      own_begin = least(now.h_out, own_begin * stage[s + 1].stride);
      own_end = y_end == stage[last].h_out ? now.h_out : least(now.h_out, own_end * stage[s + 1].stride);
    }
    const int64_t per_row =
        int64_t(now.w_out) * ((now.depthwise ? 9 * now.c_in : 0) + int64_t(now.pointwise.k) * now.pointwise.n);
    const int64_t own = own_end - own_begin, made = next[s] - start[s];
    macs += own * per_row;
    halo += (made - own) * per_row;
  }
  count(job.macs, macs);
  count(job.halo, halo);
}

DYNROUTE_INSTANTIATE(sepconv, SepconvJob)

}  // namespace dynroute::DYNROUTE_TARGET
