// What the kernels of a gate's training are told, beside train_jobs.h: its product goes through `train_forward`, as a
// stage without a depthwise does. All samples take part. Maps are [n, h, w, c]; the gate's own, of h x w pixels, is as
// large as x's, or when small a quarter of it.
#pragma once
#include "train_jobs.h"

namespace dynroute {

// The small gate's map: bilinear x1/4 of x. A task is a band of a sample's rows.
template <class T>
struct GateQuarterJob {
  const T* x;  // [n, h_in, w_in, c]
  T* out;      // [n, h, w, c]
  int h_in, w_in, h, w, c, band_rows;
};

// Of the map behind BatchNorm and ReLU, which is never stored, a task's three sums: of its values; of the pixels where
// it is above 0; and of y - mean there. The last two are all that BatchNorm's backward asks of y: the gradient of a
// mean over the map is the same for every pixel that the ReLU lets through. A task is a band of a sample's rows.
constexpr int kPooled = 0, kAbove = 1, kApart = 2, kPoolSums = 3;
template <class T>
struct GatePoolJob {
  Raw<T> y;                       // [n, h, w, c]: before the BatchNorm
  const T *scale, *shift, *mean;  // [c]
  T* sums;                        // [tasks][kPoolSums][c]
  int h, w, c, band_rows;
};

// The product's two gradients. The gradient of y is gy = gain * (g - mean_grad) + slope * (y - mean), with g = grad
// where scale * y + shift is above 0, else 0. Then x's is gy * weights, spread over the four pixels that were read with
// zeros elsewhere when the gate is small, and the weights' += gy^T * x.
// A task is a part of the rows of all samples' maps, and leaves its own sum of the weights' gradient.
template <class T>
struct GateProductJob {
  const T* x;                                  // [n, h_in, w_in, c_in]
  Raw<T> y;                                    // [n, h, w, c_out]
  const T* grad;                               // [n][c_out]: of every pixel of a sample
  const T *scale, *shift, *mean;               // [c_out]
  const T *gain, *slope, *mean_grad;           // [c_out]
  Pointwise<T> transposed;                     // k = c_out, n = c_in; panels null: x's gradient is not wanted
  T* grad_x;                                   // like x
  T* grad_weight;                              // [parts][c_out][c_in]; null: not wanted
  int n, h_in, w_in, h, w, c_in, c_out, parts;
  bool small;
  int64_t* macs;
};

}  // namespace dynroute
