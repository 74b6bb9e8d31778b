// The training of gates, in passes over the map before its BatchNorm: forward, the sums that make both the alphas and
// BatchNorm's backward; backward, the product's two gradients at once. Nothing is stored between them.
#include "train_gate.h"

#include "outer.h"
#include "train_rows.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

constexpr int kGatePixels = 96;  // of a tile: its panels lie in L2, and sums of c_out x c_in pass by once for it
constexpr int kGateChunk = 32;   // pixels walked channel by channel, whose sums are their own

// `count` pixels of the map at a quarter of the size, from column x of row y on: each the mean of 2x2 pixels.
template <class T>
DYNROUTE_INLINE void quarter_pixels(const T* sample /* [h_in, w_in, c] */, int w_in, int c, int y, int x, int count,
                                    T* to, int64_t to_apart) {
  const Vec<T> quarter = Vec<T>::set(T(0.25));
  const T* top = sample + ((int64_t(4) * y + 1) * w_in + 4 * x + 1) * c;
  for (int i = 0; i < count; ++i, top += 4 * c, to += to_apart)
    for_channels<T>(c, [&](int k, auto load, auto store) DYNROUTE_ALWAYS {
      const T *p = top + k, *q = p + int64_t(w_in) * c;
      store(to + k, quarter * ((load(p) + load(p + c)) + (load(q) + load(q + c))));
    });
}

// The gradient of x for `tile` of the small gate's map: what lies above, below and beside it, up to the border of x at
// the map's own border, is the tile's to clear.
template <class T>
void spread(const GateProductJob<T>& job, const T* grad /* [pixels, c_in] */, int sample, const PixelTile& tile) {
  const int c = job.c_in;
  const int columns = tile.x + tile.count == job.w ? job.w_in - 4 * tile.x : 4 * tile.count;
  const Vec<T> quarter = Vec<T>::set(T(0.25));
  for (int i = 0; i < tile.rows; ++i, grad += int64_t(tile.count) * c) {
    const int y = tile.y + i, end = y + 1 == job.h ? job.h_in : 4 * y + 4;
    for (int row = 4 * y; row < end; ++row) {
      T* to = job.grad_x + ((int64_t(sample) * job.h_in + row) * job.w_in + 4 * tile.x) * c;
      if (row != 4 * y + 1 && row != 4 * y + 2) {
        std::memset(to, 0, size_t(columns) * c * sizeof(T));
        continue;
      }
      for (int x = 0; x < tile.count; ++x, to += 4 * c) {
        std::memset(to, 0, size_t(c) * sizeof(T)), std::memset(to + 3 * c, 0, size_t(c) * sizeof(T));
        for_channels<T>(c, [&](int k, auto load, auto store) DYNROUTE_ALWAYS {
          const Vec<T> v = quarter * load(grad + int64_t(x) * c + k);
          store(to + c + k, v), store(to + 2 * c + k, v);
        });
      }
      std::memset(to, 0, size_t(columns - 4 * tile.count) * c * sizeof(T));
    }
  }
}

}  // namespace

template <class T>
void gate_quarter(const GateQuarterJob<T>& job, int task) {
  const int bands = int(ceil_div(job.h, job.band_rows)), sample = task / bands;
  const int begin = task % bands * job.band_rows, end = min(begin + job.band_rows, job.h);
  const T* x = job.x + int64_t(sample) * job.h_in * job.w_in * job.c;
  T* out = job.out + int64_t(sample) * job.h * job.w * job.c;
  for (int y = begin; y < end; ++y)
    quarter_pixels(x, job.w_in, job.c, y, 0, job.w, out + int64_t(y) * job.w * job.c, job.c);
}

template <class T>
void gate_pool(const GatePoolJob<T>& job, int task) {
  const int bands = int(ceil_div(job.h, job.band_rows)), sample = task / bands, c = job.c;
  const int begin = task % bands * job.band_rows, end = min(begin + job.band_rows, job.h);
  const int pixels = (end - begin) * job.w;
  T* sums = job.sums + int64_t(task) * kPoolSums * c;
  std::memset(sums, 0, size_t(kPoolSums) * c * sizeof(T));
  with_values(job.y.from((int64_t(sample) * job.h + begin) * job.w * c), [&](auto* y) DYNROUTE_ALWAYS {
    for (int at = 0; at < pixels; at += kGateChunk) {
      const int some = min(kGateChunk, pixels - at);
      for_channels<T>(c, [&](int i, auto load, auto store) DYNROUTE_ALWAYS {
        const Vec<T> scale = load(job.scale + i), shift = load(job.shift + i), one = Vec<T>::set(1);
        const Vec<T> minus = Vec<T>::set(-1) * load(job.mean + i);
        Vec<T> pooled = Vec<T>::set(0), above = pooled, apart = pooled;
        auto* from = y + int64_t(at) * c + i;
        for (int p = 0; p < some; ++p, from += c) {
          const Vec<T> value = load(from), b = fma(scale, value, shift);
          pooled = pooled + relu(b);
          above = above + where_positive(b, one), apart = apart + where_positive(b, value + minus);
        }
        const auto add = [&](int which, Vec<T> v) DYNROUTE_ALWAYS {
          T* to = sums + int64_t(which) * c + i;
          store(to, load(to) + v);
        };
        add(kPooled, pooled), add(kAbove, above), add(kApart, apart);
      });
    }
  });
}

template <class T>
void gate_product(const GateProductJob<T>& job, int task) {
  const int64_t rows = int64_t(job.n) * job.h;
  const int64_t first = rows * task / job.parts, last = rows * (task + 1) / job.parts;
  const int c_in = job.c_in, c_out = job.c_out;
  const int64_t in_stride = panel_stride<T>(c_in), out_stride = panel_stride<T>(c_out);
  const bool want_x = job.transposed.panels, want_weight = job.grad_weight;
  const int max_pixels = max(kGatePixels, job.w);
  const int64_t x_size = want_weight ? max_pixels * in_stride : 0;
  const int64_t spread_size = want_x && job.small ? int64_t(max_pixels) * c_in : 0;
  ScratchParts<T> parts(3, x_size + max_pixels * out_stride + spread_size);
  T *x = parts.take(x_size), *gy = parts.take(max_pixels * out_stride), *grad = parts.take(spread_size);
  T* grad_weight = want_weight ? job.grad_weight + int64_t(task) * c_out * c_in : nullptr;
  if (want_weight) std::memset(grad_weight, 0, size_t(c_out) * c_in * sizeof(T));
  for (int64_t row = first; row < last;) {
    const int sample = int(row / job.h), begin = int(row % job.h);
    const int end = int(min<int64_t>(job.h, begin + last - row));
    const int64_t in_size = int64_t(job.h_in) * job.w_in * c_in;
    for_tiles(begin, end, job.w, kGatePixels, [&](const PixelTile& tile) {
      const int64_t pixel = (int64_t(sample) * job.h + tile.y) * job.w + tile.x;
      with_values(job.y.from(pixel * c_out), [&](auto* raw) DYNROUTE_ALWAYS {
        for_channels<T>(c_out, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
          const Vec<T> minus = Vec<T>::set(-1), scale = load(job.scale + c), shift = load(job.shift + c);
          const Vec<T> gain = load(job.gain + c), slope = load(job.slope + c), minus_mean = minus * load(job.mean + c);
          const Vec<T> of_sample = load(job.grad + int64_t(sample) * c_out + c);
          const Vec<T> minus_grad = minus * load(job.mean_grad + c);
          auto* from = raw + c;
          T* to = gy + c;
          for (int i = 0; i < tile.pixels(); ++i, from += c_out, to += out_stride) {
            const Vec<T> y = load(from), g = where_positive(fma(scale, y, shift), of_sample);
            store(to, fma(gain, g + minus_grad, slope * (y + minus_mean)));
          }
        });
      });
      if (want_x) {
        T* out = job.small ? grad : job.grad_x + pixel * c_in;
        const PointwiseArgs<T, T> args = {gy, out_stride, tile.pixels(), job.transposed, out, nullptr, false, nullptr};
        pointwise<T, T>(args);
        if (job.small) spread(job, grad, sample, tile);
      }
      if (want_weight) {
        T* to = x;
        for (int i = 0; i < tile.rows; ++i, to += tile.count * in_stride) {
          if (job.small) {
            quarter_pixels(job.x + sample * in_size, job.w_in, c_in, tile.y + i, tile.x, tile.count, to, in_stride);
            continue;
          }
          const T* from = job.x + (pixel + int64_t(i) * job.w) * c_in;
          for (int p = 0; p < tile.count; ++p, from += c_in)
            std::memcpy(to + p * in_stride, from, size_t(c_in) * sizeof(T));
        }
        add_outer(gy, out_stride, c_out, x, in_stride, c_in, tile.pixels(), grad_weight);
      }
    });
    row += end - begin;
  }
  count(job.macs, (last - first) * job.w * c_in * c_out * (int(want_x) + int(want_weight)));
}

template void gate_quarter<float>(const GateQuarterJob<float>&, int);
template void gate_pool<float>(const GatePoolJob<float>&, int);
template void gate_product<float>(const GateProductJob<float>&, int);
#if defined(DYNROUTE_TARGET_PORTABLE)
template void gate_quarter<double>(const GateQuarterJob<double>&, int);
template void gate_pool<double>(const GatePoolJob<double>&, int);
template void gate_product<double>(const GateProductJob<double>&, int);
#endif

}  // namespace dynroute::DYNROUTE_TARGET
