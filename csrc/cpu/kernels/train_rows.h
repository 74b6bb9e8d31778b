// Rows of a training stage's input, and the tiles of pixels that go through its product.
#pragma once
#include "depthwise.h"
#include "train_output.h"

namespace dynroute::DYNROUTE_TARGET {

// A task's band of rows: [begin, end) of one of the samples that take part.
struct Band {
  int sample, begin, end;
};
DYNROUTE_INLINE Band band_of(int task, const int* samples, int h, int band_rows) {
  const int bands = int(ceil_div(h, band_rows)), begin = task % bands * band_rows;
  return {samples[task / bands], begin, min(begin + band_rows, h)};
}

// [ReLU](scale * x + shift) of `pixels` pixels, `apart` values from one to the next.
template <class T>
DYNROUTE_INLINE void make_input(const TrainInput<T> input, Raw<T> x, int64_t apart, int pixels, int channels, T* to,
                                int64_t to_apart) {
  with_values(x, [&](auto* from) DYNROUTE_ALWAYS {
    for (int i = 0; i < pixels; ++i, from += apart, to += to_apart)
      for_channels<T>(channels, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
        Vec<T> v = load(from + c);
        if (input.scale) v = fma(load(input.scale + c), v, load(input.shift + c));
        store(to + c, input.relu ? relu(v) : v);
      });
  });
}

// Rows of one sample's input, in rising order; the newest kKept of them are kept where they are not x itself.
template <class T>
class InputRows {
 public:
  static constexpr int kKept = 4;  // three under a depthwise, and the next
  static int64_t memory(const TrainStage<T>& stage) {
    return is_plain(stage.input) || !stage.depthwise ? 0 : kKept * int64_t(stage.w_in) * stage.c_in;
  }
  InputRows(const TrainStage<T>& stage, T* memory) : stage_(stage), memory_(memory) {}
  void of_sample(int sample) {
    x_ = stage_.input.x.from(int64_t(sample) * stage_.h_in * row_size());
    for (int& row : held_) row = -1;
  }
  int64_t row_size() const { return int64_t(stage_.w_in) * stage_.c_in; }
  Raw<T> raw(int y) const { return x_.from(y * row_size()); }
  // Row y as the depthwise reads it, null outside the map.
  const T* row(int y) {
    if (y < 0 || y >= stage_.h_in) return nullptr;
    if (is_plain(stage_.input)) return raw(y).wide;
    T* to = memory_ + y % kKept * row_size();
    if (held_[y % kKept] != y) {
      make_input(stage_.input, raw(y), stage_.c_in, stage_.w_in, stage_.c_in, to, stage_.c_in);
      held_[y % kKept] = y;
    }
    return to;
  }
  static bool is_plain(const TrainInput<T>& input) { return !input.scale && !input.relu; }

 private:
  const TrainStage<T>& stage_;
  T* memory_;
  Raw<T> x_;
  int held_[kKept];
};

// Pixels of a product: columns [x, x + count) of `rows` rows from y on; whole rows where there are several.
struct PixelTile {
  int y, x, rows, count;
  int pixels() const { return rows * count; }
};

// Calls body(tile) for tiles of at most `max_pixels` pixels (and at least a row's part) that cover rows [begin, end).
// Tiles begin at columns that are a multiple of `step`.
template <class Body>
DYNROUTE_INLINE void for_tiles(int begin, int end, int w, int max_pixels, const Body& body, int step = 1) {
  const int group = max(1, max_pixels / w);
  for (int y = begin; y < end; y += group) {
    const int rows = min(group, end - y);
    const int parts = rows > 1 ? 1 : int(ceil_div(w, max_pixels)), width = int(round_up(ceil_div(w, parts), step));
    for (int x = 0; x < w; x += width) body(PixelTile{y, x, rows, min(width, w - x)});
  }
}

// What goes into a stage's product, for a tile of its output: [pixels][panel_stride(c_in)].
template <class T>
DYNROUTE_INLINE void fill_panel(const TrainStage<T>& stage, InputRows<T>& in, const PixelTile& tile, T* panel,
                                int64_t stride) {
  for (int i = 0; i < tile.rows; ++i, panel += tile.count * stride) {
    const int y = (tile.y + i) * stage.stride;
    if (!stage.depthwise) {
      const int64_t apart = int64_t(stage.stride) * stage.c_in;
      make_input(stage.input, in.raw(y).from(tile.x * apart), apart, tile.count, stage.c_in, panel, stride);
      continue;
    }
    Rows<T> rows;
    for (int ky = 0; ky < 3; ++ky) rows.row[ky] = in.row(y - 1 + ky);
    if (stage.stride == 1)
      depthwise_run<T, 1>(rows, stage.w_in, 1, stage.c_in, stage.depthwise, tile.x, tile.count, panel, stride);
    else
      depthwise_run<T, 2>(rows, stage.w_in, 1, stage.c_in, stage.depthwise, tile.x, tile.count, panel, stride);
  }
}

}  // namespace dynroute::DYNROUTE_TARGET
