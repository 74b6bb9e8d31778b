// What the training kernels are told. A stage is [depthwise 3x3 ->] pointwise, whose raw output is stored: BatchNorm
// has to see all of it first, and is applied by whoever reads it. So a stage's input is x itself, or
// ReLU(scale * y + shift) of the stage before's raw output y, made row by row as it is read.
//
// Maps are [n, h, w, c]. Samples that take part are listed; the others are neither read nor written. Sums over pixels
// are partial sums of tasks, whose cuts depend on shape and number of samples alone, added up in order by whoever
// asked.
#pragma once
#include "jobs.h"

namespace dynroute {

// A map of raw outputs, of T or, kept narrow, of bfloat16: one of the two is set, or none where there is no map.
template <class Wide, class Narrow>
struct RawMap {
  Wide* wide = nullptr;
  Narrow* narrow = nullptr;
  RawMap() = default;
  RawMap(Wide* wide_in, Narrow* narrow_in) : wide(wide_in), narrow(narrow_in) {}
  template <class W, class N>  // one that is written, as one that is read
  RawMap(const RawMap<W, N>& other) : wide(other.wide), narrow(other.narrow) {}
  explicit operator bool() const { return wide || narrow; }
  RawMap from(int64_t value) const { return {wide ? wide + value : nullptr, narrow ? narrow + value : nullptr}; }
};
template <class T>
using Raw = RawMap<const T, const bf16>;
template <class T>
using RawOut = RawMap<T, bf16>;

template <class T>
struct TrainInput {
  Raw<T> x;        // [n, h_in, w_in, c_in]
  const T* scale;  // [c_in], or null: x as it is
  const T* shift;  // [c_in]
  bool relu;
};

template <class T>
struct TrainStage {
  TrainInput<T> input;
  const T* depthwise;  // [9][c_in], padding 1; or null: a pointwise product of every stride-th pixel
  int c_in, c_out, stride;
  int h_in, w_in, h_out, w_out;
  const int* samples;  // [n]
  int n;
};

// y = pointwise(depthwise(input)); a pivot, and sums over a task's pixels of y - pivot and of its square. The pivot is
// the task's first pixel, so that sums are of values about as large as y's deviation, however far from 0 its mean lies.
// A task is a band of a sample's rows.
template <class T>
struct TrainForwardJob {
  TrainStage<T> stage;
  Pointwise<T> pointwise;
  RawOut<T> y;  // [n, h_out, w_out, c_out]
  T* sums;  // [tasks][3][c_out]
  int band_rows;
  int64_t* macs;
};

// A stage's raw output y, its BatchNorm's statistics, and the ReLU behind it.
template <class T>
struct TrainOutput {
  Raw<T> y;                // [n, h, w, c]
  const T *mean, *invstd;  // [c]
  // A ReLU of scale * y + shift [+ residual], which is made again: gradients pass where it is above 0.
  bool relu;
  const T *scale, *shift;  // [c]
  const T* residual;       // like y, or null
};

// Sums of BatchNorm's backward over a task's pixels: of g and of g * (y - mean) * invstd, where g is the gradient of b.
template <class T>
struct TrainSumsJob {
  TrainOutput<T> output;
  const T* grad;    // [n, h, w, c]: of what comes behind the ReLU, times `weight`
  const T* weight;  // [n] by sample; null: 1
  T* sums;          // [tasks][2][c]
  T* dots;          // [tasks]: sum of grad * ReLU's output, the weight's gradient; null: not wanted
  const int* samples;
  int n, h, w, c, band_rows;
};

// BatchNorm's output, out = [ReLU](scale * y + shift [+ residual]) [* weight]. A task is a band of a sample's rows.
template <class T>
struct TrainApplyJob {
  Raw<T> y;                // [n, h, w, c]
  const T *scale, *shift;  // [c]
  const T* residual;       // like y, or null
  bool relu;
  const T* weight;         // [n] by sample, or null
  T* out;                  // like y
  const int* samples;
  int n, h, w, c, band_rows;
};

// The pointwise half of a stage's backward. The gradient of y is gy = gain * (g - mean_grad) + slope * (y - mean), made
// as it is read: the two nearly cancel where few pixels make the statistics, so they are centred first. Then
// grad_d = gy * weights, and the weights' gradient += gy^T * d, with d = depthwise(input) made again.
// A task is a part of the rows of all samples, and leaves its own sum of the weights' gradient, or, where maps are small
// beside the weights, gy and d for a TrainOuterJob.
template <class T>
struct TrainProductJob {
  TrainStage<T> stage;
  TrainOutput<T> output;
  const T* grad;            // [n, h_out, w_out, c_out]
  const T* weight;          // [n] of grad, by sample; null: 1
  const T *gain, *slope, *mean_grad;  // [c_out]
  Pointwise<T> transposed;  // k = c_out, n = c_in; panels null: grad_d is not wanted
  T* grad_d;                // [n, h_out, w_out, c_in]
  T* grad_weight;           // [parts][c_out][c_in]; null: not wanted so
  T *kept_gy, *kept_d;      // rows of panels, for each pixel of the maps; null: not wanted
  int parts;  // no more than rows, so that each has one
  int64_t* macs;
};

// The gradient of a product's weights from its kept factors: the sum over pixels of a^T * b. A task is a block of rows.
template <class T>
struct TrainOuterJob {
  const T *a, *b;  // [pixels][panel_stride(rows)], [pixels][panel_stride(columns)]
  T* out;          // [rows][columns]
  int rows, columns;
  const int* samples;
  int n, pixels;  // of a sample
};
constexpr int kOuterRows = 48;

// The depthwise half: the input's gradient, and the depthwise weights'. A task is a band of rows of a sample's input.
template <class T>
struct TrainDepthwiseJob {
  TrainStage<T> stage;
  const T* grad_d;         // [n, h_out, w_out, c_in]
  const T* flipped;        // [9][c_in]: the taps from last to first
  const T* added;          // [n, h_in, w_in, c_in]: added to the input's gradient; or null
  TrainOutput<T> passed;   // with a ReLU: `added` is the gradient behind it
  const T* more;           // like `added`, times more_weight; or null
  const T* more_weight;    // [n] by sample
  T* grad_x;               // [n, h_in, w_in, c_in]: before the input's affine, behind its ReLU; null: not wanted
  const T *mean, *invstd;  // [c_in], of the BatchNorm that the input went through; null: no sums
  T* sums;                 // [tasks][2][c_in]
  T* grad_weight;          // [tasks][9][c_in]; null: not wanted
  int band_rows;
  int64_t* macs;
};

}  // namespace dynroute
