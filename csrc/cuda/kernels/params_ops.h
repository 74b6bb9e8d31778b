// What the kernels are told that serve operators alone: `prepare`, which makes of a call's tensors what the kernels of
// the network want, then `sepconv` (params.h), `transform`, `aggregate`. As params.h, mirrored by tests/support/cuda.
#pragma once
#include "params.h"

namespace dynroute::cuda {

// The samples of a batch that take part, in ascending order; null: all.
struct OpenSamples {
  int* count;    // [1]
  int* samples;  // [n]
};

// prepare: weights of one call, as it was given them in the storage type T, into the kernels' layouts; the list of open
// samples; zeros for the others' outputs.
constexpr int kMostMatrices = 3;
struct PackedMatrix {
  const void* weight;          // T [n][k]; null: there is none
  const void *scale, *shift;   // [n] T
  Matrix to;
};
struct PackedDepthwise {
  const void* weight;  // T [c][9]; null: there is none
  float* to;           // [9][c]
  int c;
};
struct PrepareParams {
  PackedMatrix matrix[kMostMatrices];
  PackedDepthwise depthwise[kMostMatrices];
  const uint8_t* open;  // [n] 0 or 1; null: all take part, and there is no list
  OpenSamples list;
  void* out;           // [n][out_size] T
  int64_t out_size;    // a multiple of 4
  int n;
};

// transform: ReLU(1x1(ReLU(x)) + shift) of open samples, at every stride-th pixel of every stride-th row.
struct TransformParams {
  const void* x;  // [n][h * w * c]
  void* out;      // [n][h_out * w_out * weight.n]
  Matrix weight;
  OpenSamples open;
  int n, h, w, c, h_out, w_out, stride;
};

// aggregate: X from its sources (pull.cuh), of every sample.
struct AggregateParams {
  const void *down, *keep, *up;  // [n][h * w * c], up [n][h/2 * w/2 * c]; null: none
  const void* alphas;            // T [n][3], or null: all 1
  void* out;
  int n, h, w, c;
};

}  // namespace dynroute::cuda
