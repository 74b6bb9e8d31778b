// Sizes of a network's maps, for every device: padding, stem, scales, gate.
#pragma once
#include "contract/network.h"

namespace dynroute {

// Of the wider type of both: device code wants its 32-bit divisions.
template <class Value, class Step>
DYNROUTE_DEVICE_TOO constexpr auto ceil_div(Value value, Step step) -> decltype(value + step) {
  return (value + step - 1) / step;
}
template <class Value, class Step>
DYNROUTE_DEVICE_TOO constexpr auto round_up(Value value, Step step) -> decltype(value + step) {
  return ceil_div(value, step) * step;
}

// Sides of images are multiples of kSideMultiple, and no shorter than this.
constexpr int kSideMultiple = 32, kSmallGateSide = 128;
constexpr int smallest_side(bool small_gate) { return small_gate ? kSmallGateSide : kSideMultiple; }

// A map [h, w, c].
struct MapShape {
  int h, w, c;
  DYNROUTE_DEVICE_TOO constexpr int64_t size() const { return int64_t(h) * w * c; }
};

// Of a node's maps at a scale: 1/4 to 1/32 of an image of h x w pixels.
constexpr MapShape scale_shape(const NetworkConfig& config, int h, int w, int scale) {
  return {h >> (scale + 2), w >> (scale + 2), config.channels << scale};
}

// The stem: a 3x3 convolution of stride 2 without padding, a depthwise stage of stride 1, and one of stride 2 that
// makes the map of scale 0. What lies between has this shape.
constexpr int stem_inputs(const NetworkConfig& config) { return 9 * config.in_channels; }  // of that convolution
constexpr int stem_side(int side) { return (side - 3) / 2 + 1; }
constexpr MapShape stem_shape(const NetworkConfig& config, int h, int w) {
  return {stem_side(h), stem_side(w), config.stem_width};
}

// A side of a map after a 3x3 convolution with padding 1, or a 1x1 one.
constexpr int strided(int side, int stride) { return (side - 1) / stride + 1; }

// A side of the map that a gate reads: X's own, or a quarter of it.
DYNROUTE_DEVICE_TOO constexpr int gate_side(int side, bool small_gate) { return small_gate ? side / 4 : side; }

// Output channels of what leaves a scale of c channels: up halves, down doubles. The decoder's merges halve, but for
// the last.
constexpr int path_channels(int c, int path) { return path == kUp ? c / 2 : path == kDown ? 2 * c : c; }
DYNROUTE_DEVICE_TOO constexpr int gate_channels(int c) { return c / 2; }
constexpr int merge_channels(int c, int scale) { return scale == 0 ? c : c / 2; }

}  // namespace dynroute
