// What is behind a node's cell in training: keep, and the products of the paths up and down, forward and backward.
// Unit of work: a band of a sample's rows, in tiles of pixels. H is made for a tile, in L2, and used there by all who
// want it; nobody stores it.
#include "outer.h"
#include "train_node_jobs.h"
#include "train_output.h"
#include "train_rows.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

constexpr int kPathPixels = 128;  // of a tile: the path down sees a quarter of them

template <class T>
DYNROUTE_INLINE int most_pixels(const TrainHidden<T>& hidden) {
  return int(max<int64_t>(kPathPixels, round_up(hidden.w, 2)));
}

// H of a tile whose first value lies at `at`, into rows `stride` apart.
template <class T, class Also>
DYNROUTE_INLINE void make_hidden(const TrainHidden<T> hidden, int sample, int64_t at, int pixels, T* to,
                                 int64_t stride, const Also& also) {
  const Vec<T> factor = Vec<T>::set(weight_of(hidden.factor, sample));
  with_values(hidden.y, [&](auto* y) DYNROUTE_ALWAYS {
    for (int i = 0; i < pixels; ++i, at += hidden.c, to += stride)
      for_channels<T>(hidden.c, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
        const Vec<T> x = load(hidden.x + at + c);
        const Vec<T> v = fma(load(hidden.scale + c), load(y + at + c), load(hidden.shift + c));
        const Vec<T> h = relu(hidden.factor ? fma(factor, v, x) : v + x);
        store(to + c, h);
        also(at + c, h, x, store);
      });
  });
}

// A tile's pixels that a path of stride 2 reads, from rows `stride` apart to rows as far apart; how many.
template <class T>
int take_every_second(const PixelTile& tile, const T* from, int64_t stride, int channels, T* to) {
  int taken = 0;
  for (int row = tile.y % 2; row < tile.rows; row += 2)
    for (int i = 0; i < tile.count; i += 2, ++taken, to += stride)
      std::memcpy(to, from + (int64_t(row) * tile.count + i) * stride, size_t(channels) * sizeof(T));
  return taken;
}

// Where a tile's pixels of a path begin in its map of a sample [h', w', c'].
DYNROUTE_INLINE int64_t path_pixel(const PixelTile& tile, int sample, int h, int w, int stride) {
  const int64_t rows = ceil_div(h, stride), columns = ceil_div(w, stride);
  return (sample * rows + ceil_div(tile.y, stride)) * columns + tile.x / stride;
}

template <class Map>
DYNROUTE_INLINE bool takes_part(const Map& map, const bool* open, int sample) {
  return map && (!open || open[sample]);
}

}  // namespace

template <class T>
void train_paths(const TrainPathsJob<T>& given, int task) {
  const TrainPathsJob<T> job = given;
  const TrainHidden<T> hidden = job.hidden;
  const Band band = band_of(task, hidden.samples, hidden.h, job.band_rows);
  const int c = hidden.c;
  const int64_t stride = panel_stride<T>(c), most = most_pixels(hidden);
  ScratchParts<T> parts(2, (most + ceil_div(most, 2)) * stride);
  T *panel = parts.take(most * stride), *second = parts.take(ceil_div(most, 2) * stride);
  const Vec<T> hidden_weight = Vec<T>::set(job.hidden_weight[band.sample]);
  const T through = job.x_weight[band.sample];
  const Vec<T> x_weight = Vec<T>::set(through);
  int64_t macs = 0;
  const auto run = [&](const TrainPath<T>& path, const PixelTile& tile, const T* from, int pixels) {
    const int n = path.pointwise.n;
    if (pixels == 0) return;
    const bool first = tile.y == band.begin && tile.x == 0;
    multiply(from, stride, pixels, path.pointwise,
             path.raw.from(path_pixel(tile, band.sample, hidden.h, hidden.w, path.stride) * n), first,
             path.sums + int64_t(task) * 3 * n);
    macs += int64_t(pixels) * c * n;
  };
  const bool up = takes_part(job.up.raw, job.up.open, band.sample);
  const bool down = takes_part(job.down.raw, job.down.open, band.sample);
  for_tiles(
      band.begin, band.end, hidden.w, kPathPixels,
      [&](const PixelTile& tile) {
        const int64_t at = ((int64_t(band.sample) * hidden.h + tile.y) * hidden.w + tile.x) * c;
        make_hidden(hidden, band.sample, at, tile.pixels(), panel, stride,
                    [&](int64_t i, Vec<T> h, Vec<T> x, auto store) DYNROUTE_ALWAYS {
                      Vec<T> keep = hidden_weight * h;
                      if (through != 0) keep = fma(x_weight, x, keep);
                      store(job.keep + i, keep);
                    });
        if (up) run(job.up, tile, panel, tile.pixels());
        if (down) run(job.down, tile, second, take_every_second(tile, panel, stride, c, second));
      },
      2);
  count(job.macs, macs);
}

template <class T>
void train_paths_backward(const TrainPathsBackwardJob<T>& given, int task) {
  const TrainPathsBackwardJob<T> job = given;
  const TrainHidden<T> hidden = job.hidden;
  const Band band = band_of(task, hidden.samples, hidden.h, job.band_rows);
  const int c = hidden.c, sample = band.sample, up_c = job.up.grad ? job.up.c : 0,
            down_c = job.down.grad ? job.down.c : 0;
  const int64_t stride = panel_stride<T>(c), most = most_pixels(hidden), half = ceil_div(most, 2);
  const int64_t output_size = max(most * panel_stride<T>(up_c), half * panel_stride<T>(down_c));
  ScratchParts<T> parts(4, most * stride + 2 * half * stride + output_size);
  T *h = parts.take(most * stride), *second = parts.take(half * stride);
  T *from_down = parts.take(half * stride), *gy = parts.take(output_size);
  const bool up = takes_part(job.up.grad, job.up.open, sample), down = takes_part(job.down.grad, job.down.open, sample);
  const auto own_weight = [&](const TrainPathBackward<T>& path, bool here) -> T* {
    if (!path.grad || !path.grad_weight) return nullptr;
    T* weight = path.grad_weight + int64_t(task) * path.c * c;
    if (!here) std::memset(weight, 0, size_t(path.c) * c * sizeof(T));  // else the first tile begins it
    return weight;
  };
  T *up_weight = own_weight(job.up, up), *down_weight = own_weight(job.down, down);
  T *sums = job.sums + int64_t(task) * 2 * c, *products = sums + c;
  for (int i = 0; i < 2 * c; ++i) sums[i] = 0;
  T dots[2][Vec<T>::width] = {};
  int64_t macs = 0;
  // A path's share of a tile: the gradient of H through its product, and its weights'.
  const auto run = [&](const TrainPathBackward<T>& path, const PixelTile& tile, const T* made, int pixels,
                            T* grad_h, T* weight) {
    const int64_t out_stride = panel_stride<T>(path.c);
    const OutputGradient<T> from = {path.output, path.grad,  path.weight[sample],
                                    path.gain,   path.slope, path.mean_grad};
    const int64_t pixel = path_pixel(tile, sample, hidden.h, hidden.w, path.stride);
    T* to = path.kept_gy ? path.kept_gy + pixel * out_stride : gy;
    make_output_gradient(from, pixel * path.c, pixels, path.c, to, out_stride);
    const PointwiseArgs<T, T> args = {to, out_stride, pixels, path.transposed, grad_h, nullptr, false, nullptr};
    pointwise<T, T>(args);
    if (path.kept_h)
      for (int i = 0; i < pixels; ++i)
        std::memcpy(path.kept_h + (pixel + i) * stride, made + i * stride, size_t(c) * sizeof(T));
    const bool first = tile.y == band.begin && tile.x == 0;
    if (weight) add_outer(to, out_stride, path.c, made, stride, c, pixels, weight, first);
    macs += int64_t(pixels) * c * path.c * (weight || path.kept_h ? 2 : 1);
  };
  const Vec<T> hidden_weight = Vec<T>::set(job.hidden_weight[sample]);
  const Vec<T> factor = Vec<T>::set(weight_of(hidden.factor, sample)), minus = Vec<T>::set(-1);
  for_tiles(
      band.begin, band.end, hidden.w, kPathPixels,
      [&](const PixelTile& tile) {
        const int64_t first = ((int64_t(sample) * hidden.h + tile.y) * hidden.w + tile.x) * c;
        make_hidden(hidden, sample, first, tile.pixels(), h, stride, [](int64_t, Vec<T>, Vec<T>, auto) {});
        if (up) run(job.up, tile, h, tile.pixels(), job.grad_hidden + first, up_weight);
        if (down) {
          const int taken = take_every_second(tile, h, stride, c, second);
          if (taken > 0) run(job.down, tile, second, taken, from_down, down_weight);
        }
        const T* below = from_down;  // of the next row that the path down read
        for (int row = 0; row < tile.rows; ++row) {
          const bool has_below = down && (tile.y + row) % 2 == 0;
          for (int begin = 0; begin < tile.count; begin += kChunk) {
            const int end = min(begin + kChunk, tile.count);
            const int64_t pixel = int64_t(row) * tile.count;
            const int64_t from = first + (pixel + begin) * c;
            const T *made = h + (pixel + begin) * stride, *x = hidden.x + from;
            const T* keep = job.grad_keep ? job.grad_keep + from : nullptr;
            T* grad = job.grad_hidden + from;
            const bool scaled = hidden.factor;
            with_values(hidden.y.from(from), [&](auto* y) DYNROUTE_ALWAYS {
              for_channels<T>(c, [=, &dots](int i, auto load, auto store) DYNROUTE_ALWAYS {
                const Vec<T> minus_mean = minus * load(job.mean + i), invstd = load(job.invstd + i);
                Vec<T> sum = Vec<T>::set(0), product = sum, with_h = sum, with_x = sum;
                int64_t at = i, in_panel = i;
                for (int column = begin; column < end; ++column, at += c, in_panel += stride) {
                  const Vec<T> value = load(made + in_panel);
                  Vec<T> g = up ? load(grad + at) : Vec<T>::set(0);
                  if (has_below && column % 2 == 0) g = g + load(below + int64_t(column / 2) * c + i);
                  if (keep) {
                    const Vec<T> kept = load(keep + at);
                    g = fma(hidden_weight, kept, g);
                    with_h = fma(kept, value, with_h), with_x = fma(kept, load(x + at), with_x);
                  }
                  g = where_positive(value, g);
                  store(grad + at, g);
                  if (scaled) g = factor * g;
                  sum = sum + g, product = fma(g, (load(y + at) + minus_mean) * invstd, product);
                }
                store(sums + i, load(sums + i) + sum), store(products + i, load(products + i) + product);
                (Vec<T>::load(dots[0]) + with_h).store(dots[0]), (Vec<T>::load(dots[1]) + with_x).store(dots[1]);
              });
            });
          }
          if (has_below) below += ceil_div(tile.count, 2) * c;
        }
      },
      2);
  for (int d = 0; d < 2; ++d) {
    T total = 0;
    for (T lane : dots[d]) total += lane;
    job.dots[int64_t(task) * 2 + d] = total;
  }
  count(job.macs, macs);
}

template void train_paths<float>(const TrainPathsJob<float>&, int);
template void train_paths_backward<float>(const TrainPathsBackwardJob<float>&, int);
#if defined(DYNROUTE_TARGET_PORTABLE)
template void train_paths<double>(const TrainPathsJob<double>&, int);
template void train_paths_backward<double>(const TrainPathsBackwardJob<double>&, int);
#endif

}  // namespace dynroute::DYNROUTE_TARGET
