// Stacked depthwise 3x3 -> pointwise stages, fused row by row; also the stem and the predictor (full 3x3 convolutions).
// Unit of work: a band of rows of the last stage's output. Every earlier stage keeps the few rows that the next one
// reads in a ring, so an intermediate map never leaves L2; only at band borders are rows computed twice (the halo).
// Tiling: a step makes about `tile` pixels of a stage; their depthwise goes to a panel (L1/L2) that the pointwise
// product reads at once, and the product's epilogue writes ring or output.
#include "depthwise.h"
#if defined(DYNROUTE_TARGET_AMX)
#include "depthwise_tiles.h"
#endif
#include "pixels.h"
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

// Rows of a map, or of a ring that keeps the newest `rows` of them.
template <class T>
struct RowBuffer {
  T* base;
  int rows;  // height of the map, or of the ring
  int64_t size;
  DYNROUTE_INLINE T* row(int y) const { return base + (y % rows) * size; }
};

// Columns of a full 3x3 convolution for `count` pixels: [count][9 * c_in]; taps outside the map are zeros.
template <class S, class T>
void gather(const SepconvJob<S>& job, const RowStage<S>& stage, int y, int x, int count, T* panel, int64_t stride) {
  const int64_t plane = int64_t(stage.h_in) * stage.w_in;
  const int c_in = stage.c_in;
  for (int i = 0; i < count; ++i, panel += stride)
    for (int tap = 0; tap < 9; ++tap) {
      const int y_in = y * stage.stride - stage.pad + tap / 3, x_in = (x + i) * stage.stride - stage.pad + tap % 3;
      T* to = panel + tap * c_in;
      if (y_in < 0 || y_in >= stage.h_in || x_in < 0 || x_in >= stage.w_in) {
        for (int c = 0; c < c_in; ++c) to[c] = 0;
      } else if (job.image) {
        const T* from = job.image + int64_t(y_in) * stage.w_in + x_in;
        for (int c = 0; c < c_in; ++c) to[c] = from[c * plane];
      } else {
        const S* from = job.x + (int64_t(y_in) * stage.w_in + x_in) * c_in;
        for_channels<T>(c_in, [&](int c, auto load, auto store) DYNROUTE_ALWAYS { store(to + c, load(from + c)); });
      }
    }
}

// Of a full convolution that is read in place: taps, and how far apart they are, as products take 32-bit offsets.
constexpr int kMaxTaps = 9 * 128;
constexpr int64_t kMaxReach = int64_t(1) << 31;

// The input rows of output row y.
template <class S, class T>
DYNROUTE_INLINE Rows<T> rows_under(const RowStage<S>& stage, const RowBuffer<const T>& in, int y) {
  Rows<T> rows;
  for (int ky = 0; ky < 3; ++ky) {
    const int y_in = y * stage.stride - stage.pad + ky;
    rows.row[ky] = y_in >= 0 && y_in < stage.h_in ? in.row(y_in) : nullptr;
  }
  return rows;
}

// Pixels that go through one product: columns [x, x + count) of `rows` rows from y on.
struct Tile {
  int x, y, count, rows;
};

// Their depthwise.
template <class S, class T>
DYNROUTE_INLINE void depthwise_tile(const RowStage<S>& stage, const RowBuffer<const T>& in, const Tile& tile, T* panel,
                                    int64_t stride) {
  for (int i = 0; i < tile.rows; ++i, panel += tile.count * stride) {
    const Rows<T> rows = rows_under(stage, in, tile.y + i);
    if (stage.stride == 1)
      depthwise_run<T, 1>(rows, stage.w_in, stage.pad, stage.c_in, stage.depthwise, tile.x, tile.count, panel, stride);
    else
      depthwise_run<T, 2>(rows, stage.w_in, stage.pad, stage.c_in, stage.depthwise, tile.x, tile.count, panel, stride);
  }
}

#if defined(DYNROUTE_TARGET_AMX)
// The same in pieces; calls body(pieces).
template <int Stride, class S, class T, class Body>
DYNROUTE_INLINE void depthwise_pieces(const RowStage<S>& stage, const RowBuffer<const T>& in, const Tile& tile,
                                      bf16* tiles, const Body& body) {
  const auto rows_of = [&](int i) { return rows_under(stage, in, tile.y + i); };
  DepthwisePieces<S, Stride, decltype(rows_of)> work(
      {stage.w_in, stage.pad, stage.c_in, stage.depthwise, tile.x, tile.count, tile.rows, tiles}, rows_of);
  const Interleaved pieces = {work.piece, &work, tile.rows > 0 ? work.pieces() : 0};
  body(pieces);
}
#endif

// A full convolution of output row y from column x, `count` pixels: read where they lie, except those with taps
// outside.
template <class S, class O, class T>
void convolve(const SepconvJob<S>& job, const RowStage<S>& stage, const Pointwise<T>& weights, int y, int x, int count,
              Pixels<S>& pixels, O* out) {
  const auto gathered = [&](int from, int to) {
    pixels.make(0, to - from, [&](int first, int some, T* panel) {
      gather(job, stage, y, from + first, some, panel, pixels.stride());
    });
    PointwiseArgs<T, O> args = {pixels.rows(), pixels.stride(), to - from, weights, out + int64_t(from - x) * weights.n,
                                nullptr,       stage.relu,      nullptr};
    args.tiles = pixels.tiles();
    product<S>(args);
  };
  const int end = x + count, y_in = y * stage.stride - stage.pad, taps = 9 * stage.c_in;
  const T* map = job.image;
  if constexpr (std::is_same_v<S, T>) map = map ? map : job.x;
  const int64_t plane = int64_t(stage.h_in) * stage.w_in;
  const bool far = job.image && stage.c_in * plane > kMaxReach;
  if (!map || pixels.tiled() || taps > kMaxTaps || far || y_in < 0 || y_in + 3 > stage.h_in) return gathered(x, end);
  const int begin = min(end, max(x, int(ceil_div(stage.pad, stage.stride))));
  const int last = (stage.w_in - 3 + stage.pad) / stage.stride;  // the last column whose taps are all inside
  const int stop = max(begin, min(end, last + 1));
  if (begin > x) gathered(x, begin);
  if (stop > begin) {
    const int64_t pixel = job.image ? 1 : stage.c_in;
    int offsets[kMaxTaps];
    for (int tap = 0; tap < 9; ++tap)
      for (int c = 0; c < stage.c_in; ++c)
        offsets[tap * stage.c_in + c] =
            int((int64_t(tap / 3) * stage.w_in + tap % 3) * pixel + (job.image ? c * plane : c));
    const T* from = map + (int64_t(y_in) * stage.w_in + begin * stage.stride - stage.pad) * pixel;
    PointwiseArgs<T, O> args = {
        from,    pixel * stage.stride, stop - begin, weights, out + int64_t(begin - x) * weights.n,
        nullptr, stage.relu,           nullptr};
    args.offsets = offsets;
    pointwise<T, O>(args);
  }
  if (end > stop) gathered(stop, end);
}

template <class S>
DYNROUTE_INLINE int max_tile_pixels(const Tiling& tiling, const RowStage<S>& stage) {
  return max(tiling.tile_pixels, min(stage.w_out, tiling.strip));
}

// Rows [y_begin, y_end) of one stage, in strips of columns: within a strip a row's depthwise finds the two rows above
// in L1. A strip of the whole width takes several rows at once, where they follow each other in memory.
template <class S, class O, class T>
void run_rows(const SepconvJob<S>& job, int s, const Pointwise<T>& weights, const RowBuffer<const T>& in,
              const RowBuffer<O>& out, const RowBuffer<const T>& added, int y_begin, int y_end, T* panel,
              Prefetch& prefetch) {
  const RowStage<S>& stage = job.stage[s];
  const int n = stage.pointwise.n, width = min(stage.w_out, job.tiling.strip);
  Pixels<S> pixels(panel, weights.k, weights.n, max_tile_pixels(job.tiling, stage));
  if (!stage.depthwise) {
    for (int x = 0; x < stage.w_out; x += width)
      for (int y = y_begin; y < y_end; ++y)
        convolve(job, stage, weights, y, x, min(width, stage.w_out - x), pixels, out.row(y) + int64_t(x) * n);
    return;
  }
  const auto output = [&](const Tile& tile) { return out.row(tile.y) + int64_t(tile.x) * n; };
  const auto residual = [&](const Tile& tile) {
    return added.base ? added.row(tile.y) + int64_t(tile.x) * n : static_cast<const T*>(nullptr);
  };
  // the tile after this one; without rows after the last
  const auto after = [&](const Tile& tile) {
    Tile next = {tile.x, tile.y + tile.rows, 0, 0};
    if (next.y >= y_end) next.x += width, next.y = y_begin;
    if (next.x >= stage.w_out) return next;
    next.count = min(width, stage.w_out - next.x);
    const auto follows = [&] {
      const int y = next.y + next.rows;
      const int64_t size = int64_t(next.rows) * next.count * n;
      return y < y_end && out.row(y) == output(next) + size && (!added.base || added.row(y) == residual(next) + size);
    };
    do ++next.rows;
    while (next.count == stage.w_out && (next.rows + 1) * next.count <= job.tiling.tile_pixels && follows());
    return next;
  };
  const auto multiply = [&](const Tile& tile, const Interleaved* interleaved) {
    const int m = tile.rows * tile.count;
    PointwiseArgs<T, O> args = {pixels.rows(), pixels.stride(), m,
                                weights,       output(tile),    residual(tile),
                                stage.relu,    nullptr,         prefetch.take(prefetch_bytes<T>(m, n))};
    args.tiles = pixels.tiles(), args.interleaved = interleaved;
    product<S>(args);
  };
  Tile tile = after({0, y_begin, 0, 0});
#if defined(DYNROUTE_TARGET_AMX)
  if (pixels.tiled()) {
    // the depthwise of a tile is made while the product of the one before runs
    const auto with_pieces = [&](const Tile& of, const auto& body) DYNROUTE_ALWAYS {
      if (stage.stride == 1) depthwise_pieces<1>(stage, in, of, pixels.next_tiles(), body);
      else depthwise_pieces<2>(stage, in, of, pixels.next_tiles(), body);
    };
    with_pieces(tile, [](const Interleaved& depthwise) {
      for (int i = 0; i < depthwise.pieces; ++i) depthwise.piece(depthwise.work);
    });
    while (tile.rows > 0) {
      pixels.next();
      const Tile next = after(tile);
      with_pieces(next, [&](const Interleaved& depthwise) { multiply(tile, &depthwise); });
      tile = next;
    }
    return;
  }
#endif
  for (; tile.rows > 0; tile = after(tile)) {
    depthwise_tile(stage, in, tile, panel, pixels.stride());
    multiply(tile, nullptr);
  }
}

// What the step after this one will read (rows [y, y_end) of the input, or of its sources) and write.
template <class S>
void prefetch_inputs(const SepconvJob<S>& job, int y, int y_end, Prefetch& prefetch) {
  const int64_t row = int64_t(job.stage[0].w_in) * job.stage[0].c_in * int64_t(sizeof(S));
  const auto add = [&](const S* map, int from, int to, int64_t size) {
    if (map && to > from) prefetch.add(reinterpret_cast<const char*>(map) + from * size, (to - from) * size);
  };
  if (job.x || job.image) return add(job.x, y, y_end, row);
  add(job.sources.keep, y, y_end, row);
  add(job.sources.up, y / 2 + 1, y_end / 2 + 1, row / 2);
  add(job.sources.down, y, y_end, row);
}

}  // namespace

template <class S>
void sepconv(const SepconvJob<S>& job, int band) {
  using T = Compute<S>;
  const int last = job.stages - 1;
  const RowStage<S>* stage = job.stage;
  const int y_begin = band * job.tiling.band_rows, y_end = min(y_begin + job.tiling.band_rows, stage[last].h_out);
  const int step = min(job.tiling.step_rows, job.tiling.band_rows);
  // a map that is not stored, or not as it is computed with, goes through a ring of rows
  const bool pulled = stage[0].depthwise && (!job.x || !std::is_same_v<S, T>);
  Sources<S> sources = job.sources;
  if (job.x) sources = {nullptr, job.x, nullptr, 0, 1, 0};

  // rings: stage s holds what one step of stage s + 1 reads; the pulled input also what the residual still needs
  int ring_rows[kMaxStages] = {}, start[kMaxStages], next[kMaxStages];
  int64_t ring_size = 0, panel_size = 0, weights_size = 0;
  bool tiled = false;
  next[last] = y_begin;
  ring_rows[last] = step;
  for (int s = last; s >= 0; --s) {
    const RowStage<S>& now = stage[s];
    if (s < last) {
      const RowStage<S>& after = stage[s + 1];
      ring_rows[s] = (ring_rows[s + 1] - 1) * after.stride + 3;
      ring_size += ring_rows[s] * int64_t(now.w_out) * now.pointwise.n;
      next[s] = max(0, next[s + 1] * after.stride - after.pad);
    }
    start[s] = next[s];
    weights_size += unpacked_size<S>(now.pointwise.k, now.pointwise.n);
    panel_size = max(panel_size, Pixels<S>::size(now.pointwise.k, now.pointwise.n, max_tile_pixels(job.tiling, now)));
    tiled |= uses_tiles(now.pointwise.k, now.pointwise.n);
  }
  const int64_t in_size = int64_t(stage[0].w_in) * stage[0].c_in;
  const int pulled_rows = pulled ? (ring_rows[0] - 1) * stage[0].stride + 3 + job.stages : 0;
  int pulled_next = max(0, next[0] * stage[0].stride - stage[0].pad);

  const TileScope tiles(tiled);
  ScratchParts<T> parts(2 * job.stages + 1, panel_size + weights_size + ring_size + pulled_rows * in_size);
  T* panel = parts.take(panel_size);
  Pointwise<T> weights[kMaxStages];
  for (int s = 0; s <= last; ++s) {
    const Pointwise<S>& packed = stage[s].pointwise;
    weights[s] = unpacked(packed, parts.take(unpacked_size<S>(packed.k, packed.n)));
  }
  RowBuffer<T> out[kMaxStages];
  RowBuffer<const T> in[kMaxStages];
  for (int s = 0; s < last; ++s) {
    const int64_t size = int64_t(stage[s].w_out) * stage[s].pointwise.n;
    out[s] = {parts.take(ring_rows[s] * size), ring_rows[s], size};
    in[s + 1] = {out[s].base, ring_rows[s], size};
  }
  T* x_ring = parts.take(pulled_rows * in_size);
  if (pulled) in[0] = {x_ring, pulled_rows, in_size};
  else if constexpr (std::is_same_v<S, T>) in[0] = {job.x, stage[0].h_in, in_size};
  const int64_t out_size = int64_t(stage[last].w_out) * stage[last].pointwise.n;
  const RowBuffer<S> result = {job.out, stage[last].h_out, out_size};
  RowBuffer<const T> added = {nullptr, 1, 0};
  if (job.residual) added = in[0];
  if constexpr (std::is_same_v<S, T>)
    if (job.addend) added = {job.addend, stage[last].h_out, out_size};

  int total_stride = 1;
  for (int s = 0; s <= last; ++s) total_stride *= stage[s].stride;
  while (next[last] < y_end) {
    int want[kMaxStages];
    want[last] = min(next[last] + step, y_end);
    for (int s = last - 1; s >= 0; --s)
      want[s] = min(stage[s].h_out, (want[s + 1] - 1) * stage[s + 1].stride - stage[s + 1].pad + 3);
    const int want_x = min(stage[0].h_in, (want[0] - 1) * stage[0].stride - stage[0].pad + 3);
    for (; pulled && pulled_next < want_x; ++pulled_next)
      pull_row(sources, stage[0].h_in, stage[0].w_in, stage[0].c_in, pulled_next,
               x_ring + pulled_next % pulled_rows * in_size);
    // while the first stage is made the next step's input is fetched, while the last is, its output
    const int ahead = (want[last] - next[last]) * total_stride;
    Prefetch prefetch;
    if (want[last] < y_end) prefetch_inputs(job, want_x, min(stage[0].h_in, want_x + ahead), prefetch);
    for (int s = 0; s < last; ++s) {
      if (next[s] >= want[s]) continue;
      run_rows(job, s, weights[s], in[s], out[s], {nullptr, 1, 0}, next[s], want[s], panel, prefetch);
      next[s] = want[s];
    }
    if (last > 0) {
      prefetch.clear();
      const int rows = min(step, y_end - want[last]);
      prefetch.add(job.out + want[last] * out_size, rows * out_size * int64_t(sizeof(S)));
    }
    run_rows(job, last, weights[last], in[last], result, added, next[last], want[last], panel, prefetch);
    next[last] = want[last];
  }

  // a band owns the rows of each stage that its own output rows sit on; what it made beyond them is halo
  int own_begin = y_begin, own_end = y_end;
  int64_t macs = 0, halo = 0;
  for (int s = last; s >= 0; --s) {
    const RowStage<S>& now = stage[s];
    if (s < last) {
      own_begin = min(now.h_out, own_begin * stage[s + 1].stride);
      own_end = y_end == stage[last].h_out ? now.h_out : min(now.h_out, own_end * stage[s + 1].stride);
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
