// What the kernels are told: plain structs, no torch. A job is one sample's work at one place; it is cut into tasks
// whose boundaries depend on the map's shape alone, so neither the batch nor the number of threads can change a result.
// Maps are [height, width, channels], one sample each. Panels are pointwise weights packed 16 output channels wide.
#pragma once
#include <cstdint>

#include "contract/geometry.h"

namespace dynroute {

constexpr int kPanel = 16;  // output channels of a packed panel; shifts are padded to a multiple of it

// How maps and pointwise weights may be stored: float, double, or bfloat16, the upper half of a float. What is stored
// as S is computed in Compute<S>, and rounded once, when it is stored.
struct bf16 {
  uint16_t bits;
};
template <class S>
struct ComputeOf {
  using type = S;
};
template <>
struct ComputeOf<bf16> {
  using type = float;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

// With AMX the weights of products that pay are packed in tiles instead, of 32 inputs x 16 output channels
// (tiles.h). Tiles hold bfloat16: a float is the sum of three of them, each the upper half of what the ones before
// leave.
constexpr int kTileInputs = 32;
template <class S>
constexpr int kParts = 3;
template <>
constexpr int kParts<bf16> = 1;
constexpr bool in_tiles(int k, int /* n */) { return k >= kTileInputs; }  // fewer would mostly multiply padding
// bfloat16 values of a pointwise product's weights, or of `rows` pixels, in tiles
template <class S>
constexpr int64_t tiles_size(int64_t rows, int64_t k) {
  return round_up(rows, kPanel) * round_up(k, kTileInputs) * kParts<S>;
}

template <class S>
struct Pointwise {
  const S* panels;          // [ceil(n/16)][k][16], columns beyond n are zero; or tiles
  const Compute<S>* shift;  // [round_up(n, 16)], zeros beyond n
  int k, n;                 // input and output channels
};

// One stage of a sepconv: depthwise 3x3 -> pointwise -> shift -> [ReLU].
template <class S>
struct RowStage {
  const Compute<S>*
      depthwise;  // [9][c_in]; null: a full 3x3 convolution, pointwise.k = 9 * c_in, index (ky*3+kx)*c_in + c
  Pointwise<S> pointwise;
  int c_in, stride, pad;
  int h_in, w_in, h_out, w_out;
  bool relu;
};

// Up to three weighted sources of a map X [h, w, c], summed in the fixed order down, keep, up.
// A source with weight 0 is not read, and may be null.
template <class S>
struct Sources {
  const S* down;  // [h, w, c]
  const S* keep;  // [h, w, c]
  const S* up;    // [h/2, w/2, c], read through a bilinear x2
  Compute<S> down_weight, keep_weight, up_weight;
};

// How a stack of stages is cut: none of it can change a bit of the result.
struct Tiling {
  int band_rows;    // rows of the last stage's output in a task
  int step_rows;    // of those, made at a time: they and the rows behind them share L2
  int strip;        // columns walked down together: three rows of them share L1
  int tile_pixels;  // most pixels in a panel
};

constexpr int kMaxStages = 3;  // of a stack: those of a cell, or of the stem

// A stack of stages over one sample; a task is a band of rows of the last stage's output.
template <class S>
struct SepconvJob {
  RowStage<S> stage[kMaxStages];
  int stages;
  const S* x;               // [h_in, w_in, c_in], or null: pulled row by row from `sources`
  Sources<S> sources;       // of a map [h_in, w_in, c_in]
  const Compute<S>* image;  // [c_in, h_in, w_in] in the place of x, for a full convolution
  bool residual;            // add the input map
  const S* addend;          // [h_out, w_out, c_out] or null: added where the input map is no longer at hand
  S* out;                   // [h_out, w_out, c_out]
  Tiling tiling;
  int64_t* macs;  // executed multiply-accumulates are added here as bands finish
  int64_t* halo;  // and here those that another band does too
};

// [ReLU] -> 1x1 with stride 1 or 2 -> shift -> [ReLU]; a task is a run of output pixels.
template <class S>
struct TransformJob {
  const S* x;  // [h_in, w_in, k]
  S* out;      // [h_out, w_out, n]
  Pointwise<S> pointwise;
  int h_in, w_in, h_out, w_out, stride;
  bool relu_input, relu;
  int64_t* macs;
};

// X itself, stored; a task is a band of rows.
template <class S>
struct AggregateJob {
  Sources<S> sources;
  S* out;  // [h, w, c]
  int h, w, c;
};

// Column sums over a map of ReLU(1x1(x) + shift); a task is a band of rows and writes its own partial sum.
template <class S>
struct GateJob {
  const S* x;  // [h, w, k], or null: pulled row by row from `sources`
  Sources<S> sources;
  Pointwise<S> pointwise;
  int h, w;
  bool small;            // sum over the map at a quarter of the size
  Compute<S>* partials;  // [gate_tasks(...)][round_up(n, 16)]
  int64_t* macs;
};

// Bilinear x4 of [h, w, c] into planes, cropped; a task is a band of input rows.
template <class S>
struct UpsampleJob {
  const S* x;       // [h, w, c]
  Compute<S>* out;  // [c, out_h, out_w]
  int h, w, c, out_h, out_w;
};

}  // namespace dynroute
