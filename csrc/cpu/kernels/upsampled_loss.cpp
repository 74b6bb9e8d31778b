// Cross entropy of logits upsampled as they are read, and its gradient. Nothing is made at full size.
// Unit of work: a vector of neighbouring low-resolution columns in a gap (loss_jobs.h). The full-size pixels of one
// phase - every factor-th column, in each of the gap's rows - are blends of the same columns with the same weights, so
// lanes are pixels, classes follow each other in L1, and max, exp, sum and both bilinears are vertical: no shuffles,
// whatever the number of classes is. Bound by the exp of every class of every pixel.
#include "loss_jobs.h"
#include "target.h"
#include "vexp.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

// The bilinear of one axis at phase `p` of a low-resolution pixel: itself, and its neighbour before or behind it.
struct Phase {
  double self, other;
  bool before;
};
DYNROUTE_INLINE Phase phase_of(int p, int factor) {
  const double offset = (p + 0.5) / factor - 0.5;
  return {1 - (offset < 0 ? -offset : offset), offset < 0 ? -offset : offset, offset < 0};
}

// Rows of a map, class by class, a row of vectors behind each other's end by more than a power of two.
template <class T>
struct Planes {
  static constexpr int width = Vec<T>::width;
  int w, k;
  int64_t whole = round_up(int64_t(w), width), stride = whole + width;
  int64_t size() const { return k * stride; }
};

// planes[k][1 + x] = row[x][k], the border repeated on both sides and as far as vectors are read.
template <class T>
DYNROUTE_INLINE void gather_row(const T* row, const Planes<T>& of, T* planes) {
  for (int x = 0; x < of.w; ++x, row += of.k)
    for (int c = 0; c < of.k; ++c) planes[c * of.stride + 1 + x] = row[c];
  for (int c = 0; c < of.k; ++c, planes += of.stride) {
    planes[0] = planes[1];
    for (int64_t x = of.w + 1; x < of.whole + 2; ++x) planes[x] = planes[of.w];
  }
}

// A low-resolution row's gradient, in parts: of its own columns, and of the columns before and behind them.
enum Part { kBefore, kSelf, kBehind };
template <class T>
DYNROUTE_INLINE void scatter_row(const T* parts, const Planes<T>& of, T* row) {
  const T *before = parts, *self = before + of.size(), *behind = self + of.size();
  const int last = of.w - 1;
  for (int x = 0; x < of.w; ++x, row += of.k)
    for (int c = 0; c < of.k; ++c) {
      const int64_t at = c * of.stride + x;
      const T left = x > 0 ? behind[at - 1] : before[at], right = x < last ? before[at + 1] : behind[at];
      row[c] = self[at] + left + right;
    }
}

// What a vector of pixels is told of its labels.
template <class T>
struct Classes {
  Int<T> of[Vec<T>::width];  // -1: ignored
  T weight[Vec<T>::width];
};

}  // namespace

template <class T>
void upsampled_loss(const UpsampledLossJob<T>& job, int task) {
  using V = Vec<T>;
  constexpr int width = V::width;
  const int h = job.h, w = job.w, k = job.k, factor = job.factor;
  const int bands = cuts::loss_bands(h), gaps = cuts::loss_gaps(h);
  const int sample = task / bands, first = task % bands * gaps, end = min(first + gaps, h + 1);
  const Planes<T> of = {w, k};
  const int64_t strip = int64_t(k) * width, row_size = int64_t(w) * k;
  const bool wanted = job.gradient != nullptr;

  ScratchParts<T> parts(9, 2 * of.size() + (wanted ? 6 * of.size() : 0) + 5 * strip);
  T *planes[2], *sums[2] = {};
  for (T*& plane : planes) plane = parts.take(of.size());
  if (wanted)
    for (T*& sum : sums) {
      sum = parts.take(3 * of.size());
      std::memset(sum, 0, size_t(3 * of.size()) * sizeof(T));
    }
  // of one strip: the two rows widened at a phase, their gradients, and a pixel's values
  T *above = parts.take(strip), *below = parts.take(strip);
  T *above_grad = parts.take(strip), *below_grad = parts.take(strip), *values = parts.take(strip);
  int held[2] = {-1, -1};
  const auto row_planes = [&](int r) {
    if (held[r & 1] != r) {
      gather_row(job.logits + (int64_t(sample) * h + r) * row_size, of, planes[r & 1]);
      held[r & 1] = r;
    }
    return planes[r & 1];
  };
  const auto finish_row = [&](int r) {
    T* to = r < first ? job.edges + task * row_size : job.gradient + (int64_t(sample) * h + r) * row_size;
    scatter_row(sums[r & 1], of, to);
    std::memset(sums[r & 1], 0, size_t(3 * of.size()) * sizeof(T));
  };

  double loss = 0;
  int64_t stray = job.ignore_index;
  // The classes of the pixels of phase p at columns x.. of row y; whether one of them is not ignored.
  const auto look_up = [&](int y, int x, int p, Classes<T>& classes) {
    const int64_t* labels = job.labels + (int64_t(sample) * job.out_h + y) * job.out_w;
    bool some = false;
    for (int i = 0; i < width; ++i) {
      const int64_t column = int64_t(x + i) * factor + p;
      const int64_t label = column < job.out_w ? labels[column] : job.ignore_index;
      const bool counts = label != job.ignore_index, good = label >= 0 && label < k;
      if (counts && !good) stray = label;
      some |= counts && good;
      classes.of[i] = counts && good ? Int<T>(label) : Int<T>(-1);
      if (job.weight) classes.weight[i] = counts && good ? job.weight[label] : T(0);
    }
    return some;
  };

  for (int i = first; i < end; ++i) {
    const int gap = i - 1, begin_y = max(0, factor * gap + factor / 2);
    const int end_y = min(factor * (gap + 1) + factor / 2, job.out_h);
    const int top = max(gap, 0), bottom = min(gap + 1, h - 1);
    if (begin_y < end_y) {
      const T *from_top = row_planes(top), *from_bottom = row_planes(bottom);
      for (int x = 0; x < w; x += width) {
        V losses = V::set(0);
        for (int p = 0; p < factor; ++p) {
          const Phase column = phase_of(p, factor);
          const V self = V::set(T(column.self)), other = V::set(T(column.other));
          const int side = column.before ? 0 : 2;
          for (int c = 0; c < k; ++c) {
            const T *at_top = from_top + c * of.stride + x, *at_bottom = from_bottom + c * of.stride + x;
            fma(self, V::load(at_top + 1), other * V::load(at_top + side)).store(above + c * width);
            fma(self, V::load(at_bottom + 1), other * V::load(at_bottom + side)).store(below + c * width);
          }
          if (wanted) {
            std::memset(above_grad, 0, size_t(strip) * sizeof(T));
            std::memset(below_grad, 0, size_t(strip) * sizeof(T));
          }
          for (int y = begin_y; y < end_y; ++y) {
            Classes<T> classes;
            if (!look_up(y, x, p, classes)) continue;
            const double share = (y + 0.5) / factor - 0.5 - gap;
            const V of_top = V::set(T(1 - share)), of_bottom = V::set(T(share));
            V most = V::set(T(-INFINITY));
            for (int c = 0; c < k; ++c) {
              const V z = fma(of_bottom, V::load(below + c * width), of_top * V::load(above + c * width));
              z.store(values + c * width);
              most = maximum(most, z);
            }
            const Ints<T> labels = load_ints<T>(classes.of), valid = labels >= 0;
            const V weight = job.weight ? V::load(classes.weight) : V::set(1);
            V sum = V::set(0), of_label = V::set(0);
            for (int c = 0; c < k; ++c) {
              const V z = V::load(values + c * width) - most, e = exp_of(z);
              of_label = of_label + where<T>(labels == Int<T>(c), z);
              sum = sum + e;
              e.store(values + c * width);
            }
            losses = losses + where<T>(valid, weight * (log_of(sum) - of_label));
            if (!wanted) continue;
            const V scale = weight / sum;
            for (int c = 0; c < k; ++c) {
              const V one = where<T>(labels == Int<T>(c), weight);
              const V g = where<T>(valid, V::load(values + c * width) * scale - one);
              fma(of_top, g, V::load(above_grad + c * width)).store(above_grad + c * width);
              fma(of_bottom, g, V::load(below_grad + c * width)).store(below_grad + c * width);
            }
          }
          if (!wanted) continue;
          T *top_self = sums[top & 1] + kSelf * of.size() + x, *bottom_self = sums[bottom & 1] + kSelf * of.size() + x;
          const int64_t to_side = column.before ? -of.size() : of.size();
          for (int c = 0; c < k; ++c) {
            const auto add = [&](T* to, const T* grad) DYNROUTE_ALWAYS {
              fma(self, V::load(grad + c * width), V::load(to)).store(to);
              fma(other, V::load(grad + c * width), V::load(to + to_side)).store(to + to_side);
            };
            add(top_self + c * of.stride, above_grad);
            add(bottom_self + c * of.stride, below_grad);
          }
        }
        T lanes[width];
        losses.store(lanes);
        for (T lane : lanes) loss += double(lane);
      }
    }
    if (wanted && gap >= 0) finish_row(gap);
  }
  if (wanted && end <= h) finish_row(end - 1);
  job.losses[task] = loss;
  job.strays[task] = stray;
}

template void upsampled_loss<float>(const UpsampledLossJob<float>&, int);
#if defined(DYNROUTE_TARGET_PORTABLE)
template void upsampled_loss<double>(const UpsampledLossJob<double>&, int);
#endif

}  // namespace dynroute::DYNROUTE_TARGET
