// The backward of training stages, in passes over the map: the two sums of BatchNorm's backward; the pointwise
// product's two gradients; the depthwise's two, with the ReLU before it and the sums that the BatchNorm before needs.
// Nothing between the passes but one map: the gradient of the depthwise's output. That output itself is made again.
#include "outer.h"
#include "train_output.h"
#include "train_rows.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

constexpr int kProductPixels = 96;  // of a tile: its two panels lie in L2, and sums of c_out x c_in pass by once for it
}  // namespace

template <class T>
void train_sums(const TrainSumsJob<T>& given, int task) {
  const TrainSumsJob<T> job = given;
  const Band band = band_of(task, job.samples, job.h, job.band_rows);
  const TrainOutput<T> output = job.output;
  const int64_t first = (int64_t(band.sample) * job.h + band.begin) * job.w * job.c;
  const int pixels = (band.end - band.begin) * job.w;
  const Vec<T> weight = Vec<T>::set(weight_of(job.weight, band.sample));
  T *sums = job.sums + int64_t(task) * 2 * job.c, *products = sums + job.c;
  for (int c = 0; c < 2 * job.c; ++c) sums[c] = 0;
  T dot[Vec<T>::width] = {};
  with_values(output.y, [&](auto* raw) DYNROUTE_ALWAYS {
    for (int at = 0; at < pixels; at += kChunk) {
      const int some = min(kChunk, pixels - at);
      for_channels<T>(job.c, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
        const Vec<T> minus = Vec<T>::set(-1) * load(output.mean + c), invstd = load(output.invstd + c);
        Vec<T> sum = Vec<T>::set(0), product = sum;
        int64_t from = first + int64_t(at) * job.c + c;
        for (int i = 0; i < some; ++i, from += job.c) {
          const Vec<T> y = load(raw + from);
          const Vec<T> g = through_relu(output, weight * load(job.grad + from), y, from, c, load);
          sum = sum + g, product = fma(g, (y + minus) * invstd, product);
        }
        store(sums + c, load(sums + c) + sum), store(products + c, load(products + c) + product);
        if (job.dots) {
          // of what the ReLU let through: out = scale * y + shift there
          Vec<T> behind = Vec<T>::set(0);
          const Vec<T> scale = load(output.scale + c), shift = load(output.shift + c);
          from = first + int64_t(at) * job.c + c;
          for (int i = 0; i < some; ++i, from += job.c)
            behind = fma(load(job.grad + from), relu(fma(scale, load(raw + from), shift)), behind);
          (Vec<T>::load(dot) + behind).store(dot);
        }
      });
    }
  });
  if (!job.dots) return;
  job.dots[task] = 0;
  for (T lane : dot) job.dots[task] += lane;
}

template <class T>
void train_product(const TrainProductJob<T>& job, int task) {
  const TrainStage<T>& stage = job.stage;
  const int64_t rows = int64_t(stage.n) * stage.h_out;
  const int64_t first = rows * task / job.parts, last = rows * (task + 1) / job.parts;
  const int c_in = stage.c_in, c_out = stage.c_out;
  const int64_t in_stride = panel_stride<T>(c_in), out_stride = panel_stride<T>(c_out);
  const int max_pixels = max(kProductPixels, stage.w_out);
  const int64_t memory = InputRows<T>::memory(stage);
  ScratchParts<T> parts(3, max_pixels * (in_stride + out_stride) + memory);
  T *d_panel = parts.take(max_pixels * in_stride), *gy_panel = parts.take(max_pixels * out_stride);
  InputRows<T> in(stage, parts.take(memory));
  T* grad_weight = job.grad_weight ? job.grad_weight + int64_t(task) * c_out * c_in : nullptr;
  bool is_first = true;  // of the task's tiles
  for (int64_t row = first; row < last;) {
    const int sample = stage.samples[row / stage.h_out], begin = int(row % stage.h_out);
    const int end = int(min<int64_t>(stage.h_out, begin + last - row));
    in.of_sample(sample);
    const OutputGradient<T> from = {job.output, job.grad,  weight_of(job.weight, sample),
                                    job.gain,   job.slope, job.mean_grad};
    for_tiles(begin, end, stage.w_out, kProductPixels, [&](const PixelTile& tile) {
      const int64_t pixel = (int64_t(sample) * stage.h_out + tile.y) * stage.w_out + tile.x;
      T* gy = job.kept_gy ? job.kept_gy + pixel * out_stride : gy_panel;
      make_output_gradient(from, pixel * c_out, tile.pixels(), c_out, gy, out_stride);
      if (job.transposed.panels) {
        const PointwiseArgs<T, T> args = {gy,      out_stride, tile.pixels(), job.transposed, job.grad_d + pixel * c_in,
                                          nullptr, false,      nullptr};
        pointwise<T, T>(args);
      }
      if (job.kept_d) fill_panel(stage, in, tile, job.kept_d + pixel * in_stride, in_stride);
      if (grad_weight) {
        fill_panel(stage, in, tile, d_panel, in_stride);
        add_outer(gy, out_stride, c_out, d_panel, in_stride, c_in, tile.pixels(), grad_weight, is_first);
        is_first = false;
      }
    });
    row += end - begin;
  }
  const int64_t pixels = (last - first) * stage.w_out, product = int64_t(c_in) * c_out;
  count(job.macs, pixels * ((job.transposed.panels ? product : 0) +
                            (grad_weight || job.kept_d ? product + (stage.depthwise ? 9 * int64_t(c_in) : 0) : 0)));
}

template <class T>
void train_outer(const TrainOuterJob<T>& job, int task) {
  const int64_t a_stride = panel_stride<T>(job.rows), b_stride = panel_stride<T>(job.columns);
  const int begin = task * kOuterRows, rows = min(kOuterRows, job.rows - begin);
  T* out = job.out + int64_t(begin) * job.columns;
  for (int i = 0; i < job.n; ++i)
    for (int pixel = 0; pixel < job.pixels; pixel += kProductPixels) {
      const int64_t at = int64_t(job.samples[i]) * job.pixels + pixel;
      add_outer(job.a + at * a_stride + begin, a_stride, rows, job.b + at * b_stride, b_stride, job.columns,
                min(kProductPixels, job.pixels - pixel), out, i == 0 && pixel == 0);
    }
}

namespace {

// Row y of the gradient of a stage's input, from the gradient of its depthwise's output: [w_in][c].
template <class T>
void input_gradient(const TrainStage<T>& stage, const T* grad_d, const T* flipped, int y, T* out) {
  const int c = stage.c_in, w = stage.w_out;
  const int64_t row = int64_t(w) * c;
  const auto above = [&](int at) { return at >= 0 && at < stage.h_out ? grad_d + at * row : nullptr; };
  if (stage.depthwise && stage.stride == 1) {
    const Rows<T> rows = {{above(y - 1), above(y), above(y + 1)}};
    return depthwise_run<T, 1>(rows, w, 1, c, flipped, 0, stage.w_in, out, c);
  }
  if (!stage.depthwise) {  // every stride-th pixel of every stride-th row
    const T* from = y % stage.stride == 0 ? above(y / stage.stride) : nullptr;
    for (int x = 0; x < stage.w_in; ++x, out += c) {
      if (from && x % stage.stride == 0) std::memcpy(out, from + int64_t(x / stage.stride) * c, size_t(c) * sizeof(T));
      else std::memset(out, 0, size_t(c) * sizeof(T));
    }
    return;
  }
  std::memset(out, 0, size_t(stage.w_in) * c * sizeof(T));
  for (int ky = 0; ky < 3; ++ky) {
    const int from = y + 1 - ky;
    if (from % stage.stride || !above(from / stage.stride) || from < 0) continue;
    for (int x = 0; x < w; ++x)
      for (int kx = 0; kx < 3; ++kx) {
        const int to = x * stage.stride - 1 + kx;
        if (to < 0 || to >= stage.w_in) continue;
        const T* g = above(from / stage.stride) + int64_t(x) * c;
        T* sum = out + int64_t(to) * c;
        for_channels<T>(c, [&](int i, auto load, auto store) DYNROUTE_ALWAYS {
          const Vec<T> v = load(g + i);
          store(sum + i, fma(v, load(stage.depthwise + (ky * 3 + kx) * c + i), load(sum + i)));
        });
      }
  }
}

constexpr int kTapPixels = 32;  // nine sums in registers over so many pixels of a vector's channels

// weight[row][kx] += the sum over a row's pixels of the output's gradient times the input under the row's tap kx.
template <class T, int ROWS>
void depthwise_gradient(const TrainStage<T>& stage, const T* grad /* [w_out, c] */, const T* const* in /* [w_in, c] */,
                        T* weight /* [ROWS][3][c] */) {
  const int stride = stage.stride, w = stage.w_out, c = stage.c_in;
  // pixels whose three taps are all inside, and the others one by one
  const int first = 1, last = min(w, (stage.w_in - 2) / stride + 1);
  const auto edge = [&](int x) {
    for (int row = 0; row < ROWS; ++row)
      for (int kx = 0; kx < 3; ++kx) {
        const int from = x * stride - 1 + kx;
        if (from < 0 || from >= stage.w_in) continue;
        for_channels<T>(c, [&](int i, auto load, auto store) DYNROUTE_ALWAYS {
          T* to = weight + (row * 3 + kx) * c + i;
          store(to, fma(load(grad + int64_t(x) * c + i), load(in[row] + int64_t(from) * c + i), load(to)));
        });
      }
  };
  edge(0);
  for (int begin = first; begin < last; begin += kTapPixels) {
    const int end = min(begin + kTapPixels, last);
    for_channels<T>(c, [&](int i, auto load, auto store) DYNROUTE_ALWAYS {
      Vec<T> sum[ROWS][3];
      const T* from[ROWS];
      DYNROUTE_UNROLL for (int row = 0; row < ROWS; ++row) {
        from[row] = in[row] + (int64_t(begin) * stride - 1) * c + i;
        DYNROUTE_UNROLL for (int kx = 0; kx < 3; ++kx) sum[row][kx] = Vec<T>::set(0);
      }
      const T* at = grad + int64_t(begin) * c + i;
      for (int x = begin; x < end; ++x, at += c) {
        const Vec<T> g = load(at);
        DYNROUTE_UNROLL for (int row = 0; row < ROWS; ++row) {
          DYNROUTE_UNROLL for (int kx = 0; kx < 3; ++kx)
            sum[row][kx] = fma(g, load(from[row] + int64_t(kx) * c), sum[row][kx]);
          from[row] += int64_t(stride) * c;
        }
      }
      DYNROUTE_UNROLL for (int row = 0; row < ROWS; ++row) {
        DYNROUTE_UNROLL for (int kx = 0; kx < 3; ++kx) {
          T* to = weight + (row * 3 + kx) * c + i;
          store(to, load(to) + sum[row][kx]);
        }
      }
    });
  }
  for (int x = max(last, first); x < w; ++x) edge(x);
}

// The same for output row y of a map, weight [3][3][c].
template <class T>
void depthwise_gradient_of_row(const TrainStage<T>& stage, const T* grad, InputRows<T>& in, int y, T* weight) {
  const T* rows[3];
  for (int ky = 0; ky < 3; ++ky) rows[ky] = in.row(y * stage.stride - 1 + ky);
  if (rows[0] && rows[2]) return depthwise_gradient<T, 3>(stage, grad, rows, weight);
  for (int ky = 0; ky < 3; ++ky)
    if (rows[ky]) depthwise_gradient<T, 1>(stage, grad, rows + ky, weight + ky * 3 * stage.c_in);
}

}  // namespace

template <class T>
void train_depthwise(const TrainDepthwiseJob<T>& given, int task) {
  const TrainDepthwiseJob<T> job = given;
  const TrainStage<T>& stage = job.stage;
  const Band band = band_of(task, stage.samples, stage.h_in, job.band_rows);
  const int c = stage.c_in;
  const int64_t row_size = int64_t(stage.w_in) * c, out_row = int64_t(stage.w_out) * c;
  const int64_t memory = InputRows<T>::memory(stage);
  ScratchParts<T> parts(1, memory);
  InputRows<T> in(stage, parts.take(memory));
  in.of_sample(band.sample);
  const T* grad_d = job.grad_d + int64_t(band.sample) * stage.h_out * out_row;
  const int64_t first = int64_t(band.sample) * stage.h_in * row_size;
  T* sums = job.sums ? job.sums + int64_t(task) * 2 * c : nullptr;
  if (sums) std::memset(sums, 0, size_t(2 * c) * sizeof(T));
  T* weight = job.grad_weight ? job.grad_weight + int64_t(task) * 9 * c : nullptr;
  if (weight) std::memset(weight, 0, size_t(9 * c) * sizeof(T));
  for (int y = band.begin; y < band.end; ++y) {
    if (weight && y % stage.stride == 0)
      depthwise_gradient_of_row(stage, grad_d + y / stage.stride * out_row, in, y / stage.stride, weight);
    if (!job.grad_x) continue;
    T* out = job.grad_x + first + y * row_size;
    input_gradient(stage, grad_d, job.flipped, y, out);
    const TrainInput<T> input = stage.input;
    const TrainOutput<T> passed = job.passed;
    if (!input.relu && !job.added && !job.more && !sums) continue;
    const T* added = job.added ? job.added + first + y * row_size : nullptr;
    const Vec<T> more_weight = Vec<T>::set(job.more ? job.more_weight[band.sample] : T(0));
    const T* more = job.more && job.more_weight[band.sample] != 0 ? job.more + first + y * row_size : nullptr;
    with_values(in.raw(y), [&](auto* x) DYNROUTE_ALWAYS {
      for (int column = 0; column < stage.w_in; column += kChunk) {
        const int64_t row_end = int64_t(min(column + kChunk, stage.w_in)) * c;
        for_channels<T>(c, [&](int i, auto load, auto store) DYNROUTE_ALWAYS {
          Vec<T> sum = Vec<T>::set(0), product = sum, minus = sum, invstd = sum, scale = sum, shift = sum;
          if (sums) {
            minus = Vec<T>::set(-1) * load(job.mean + i), invstd = load(job.invstd + i);
          }
          if (input.scale) scale = load(input.scale + i), shift = load(input.shift + i);
          for (int64_t at = int64_t(column) * c + i; at < row_end; at += c) {
            Vec<T> g = load(out + at);
            const Vec<T> value = load(x + at);
            if (input.relu) g = where_positive(input.scale ? fma(scale, value, shift) : value, g);
            if (added) {
              const int64_t here = first + y * row_size + at;
              const Vec<T> made = passed.relu ? load_raw(passed.y, here, load) : g;
              g = g + through_relu(passed, load(added + at), made, here, i, load);
            }
            if (more) g = fma(more_weight, load(more + at), g);
            if (sums) sum = sum + g, product = fma(g, (value + minus) * invstd, product);
            store(out + at, g);
          }
          if (sums) store(sums + i, load(sums + i) + sum), store(sums + c + i, load(sums + c + i) + product);
        });
      }
    });
  }
  const int64_t taps = stage.depthwise ? 9 : 0, here = int64_t(band.end - band.begin) * stage.w_in * c * taps;
  const int64_t out_rows = ceil_div(band.end, stage.stride) - ceil_div(band.begin, stage.stride);
  const int64_t outputs = out_rows * stage.w_out * c * taps;
  count(job.macs, (job.grad_x ? (stage.stride == 1 ? here : outputs) : 0) + (weight ? outputs : 0));
}

template void train_sums<float>(const TrainSumsJob<float>&, int);
template void train_product<float>(const TrainProductJob<float>&, int);
template void train_outer<float>(const TrainOuterJob<float>&, int);
template void train_depthwise<float>(const TrainDepthwiseJob<float>&, int);
#if defined(DYNROUTE_TARGET_PORTABLE)
template void train_sums<double>(const TrainSumsJob<double>&, int);
template void train_product<double>(const TrainProductJob<double>&, int);
template void train_outer<double>(const TrainOuterJob<double>&, int);
template void train_depthwise<double>(const TrainDepthwiseJob<double>&, int);
#endif

}  // namespace dynroute::DYNROUTE_TARGET
