// What the kernels of a node in training are told: its cell's last stage, whose output H is made as it is read and
// stored nowhere; the paths up and down, which are 1x1 products of H; and keep, which is H or the node's input.
#pragma once
#include "train_jobs.h"

namespace dynroute {

// H = ReLU(factor * (scale * y + shift) + x)
template <class T>
struct TrainHidden {
  const T* x;              // [n, h, w, c]: the cell's input
  Raw<T> y;                // like x: its last stage's raw output
  const T *scale, *shift;  // [c]
  const T* factor;         // [n] by sample (drop path); null: 1
  const int* samples;      // those that take part
  int n, h, w, c;
};

// A path's product, forward: raw = pointwise(H at every stride-th pixel).
template <class T>
struct TrainPath {
  Pointwise<T> pointwise;  // n = c'
  int stride;
  const bool* open;  // [n] by sample; null: all
  RawOut<T> raw;     // [n, h', w', c']; null: there is no such path
  T* sums;           // [tasks][3][c'], as TrainForwardJob's
};

// keep = hidden_weight * H + x_weight * x, and the products of both paths. A task is a band of a sample's rows, an even
// number of them.
template <class T>
struct TrainPathsJob {
  TrainHidden<T> hidden;
  TrainPath<T> up, down;
  const T *hidden_weight, *x_weight;  // [n] by sample
  T* keep;                            // [n, h, w, c]
  int band_rows;
  int64_t* macs;
};

// A path in backward. The gradient of raw is made as in TrainProductJob.
template <class T>
struct TrainPathBackward {
  TrainOutput<T> output;  // y: raw
  const T* grad;          // [n, h', w', c']: of what is behind its ReLU, times `weight`; null: there is no such path
  const T* weight;        // [n] by sample
  const T *gain, *slope, *mean_grad;  // [c']
  Pointwise<T> transposed;            // k = c', n = c
  T* grad_weight;                     // [tasks][c'][c]; null: not wanted so
  T *kept_gy, *kept_h;                // as TrainProductJob's; null: not wanted
  const bool* open;
  int c, stride;
};

// The gradient of what H's ReLU read, from keep and both paths; sums for the BatchNorm before it.
template <class T>
struct TrainPathsBackwardJob {
  TrainHidden<T> hidden;
  TrainPathBackward<T> up, down;
  const T* grad_keep;      // [n, h, w, c], or null
  const T* hidden_weight;  // [n] by sample
  const T *mean, *invstd;  // [c], of the cell's last BatchNorm
  T* grad_hidden;          // [n, h, w, c]
  T* sums;                 // [tasks][2][c]: of factor * grad_hidden, as TrainSumsJob's
  T* dots;                 // [tasks][2]: sums of grad_keep * H and of grad_keep * x
  int band_rows;
  int64_t* macs;
};

}  // namespace dynroute
