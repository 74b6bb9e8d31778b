// What the kernels are told that serve operators alone: `prepare`, which makes of a call's tensors what the kernels of
// the network want, then `sepconv` (params.h), `gate`, `route`, `transform`, `aggregate` and its backward.
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
  const void* weight;         // T [n][k]; null: there is none
  const void *scale, *shift;  // [n] T
  Matrix to;
  Divisor row;  // values in a row of `to`; by prepare_shape
};
struct PackedDepthwise {
  const void* weight;  // T [c][9]; null: there is none
  float* to;           // [9][c]
  int c;
  Divisor channels;  // c; by prepare_shape
};
struct WidenedValues {
  const void* from;  // T [count]; null: there are none
  float* to;
  int count;
};
struct PrepareParams {
  PackedMatrix matrix[kMostMatrices];
  PackedDepthwise depthwise[kMostMatrices];
  WidenedValues widened[2];
  int* zeroed;  // [zeroed_count], or null
  int zeroed_count;
  const uint8_t* open;  // [n] 0 or 1; null: all take part, and there is no list
  OpenSamples list;
  void* out;  // [n][out_size] T
  int64_t out_size;
  int n;
};

// transform: ReLU(1x1(ReLU(x)) + shift) of open samples, at every stride-th pixel of every stride-th row.
struct TransformParams {
  const void* x;  // [n][h * w * c]
  void* out;      // [n][h_out * w_out * weight.n]
  Matrix weight;
  OpenSamples open;
  int n, h, w, c, h_out, w_out, stride;
  Cut part;
  Divisor items, across;  // items of a sample; w_out; by transform_shape
};

// gate: the gate of present samples, as aggregate_route's, of a map that is there.
struct GateParams {
  const void* x;  // [n][h * w * c]
  Matrix gate;
  const float *fc_weight, *fc_bias;  // [gates][gate.n], [gates]
  float* partials;                   // [n][tasks][n_pad]
  int* arrivals;                     // [n], zero
  void* out;                         // T [n][gates]
  OpenSamples present;
  int gates, activation, small_gate;
  int n, h, w, c;
  AggregateTiling tiling;  // by gate_shape
};

// route: one layer's routes, as `dynroute.ops.route` says; everything contiguous. (A network's rows are routed by the
// last block of aggregate_route.)
struct RouteParams {
  const void* alphas;                    // T [n][kScales][kPaths]
  const uint8_t *present, *path_exists;  // [n][kScales], [kScales][kPaths]
  const int* slots;                      // [n][kScales]
  void* masked;                          // like alphas
  int *open, *open_count;                // [kScales][n], [kScales]
  int *path_open, *path_count;           // [kScales][kPaths][n], [kScales][kPaths]
  uint8_t *closed, *next_present;        // [n][kScales]
  int* next_slots;                       // [n][kScales]
  int n;
};

// aggregate: X from its sources (pull.cuh), of every sample.
struct AggregateParams {
  const void *down, *keep, *up;  // [n][h * w * c], up [n][h/2 * w/2 * c]; null: none
  const void* alphas;            // T [n][3], or null: all 1
  void* out;
  int n, h, w, c;
  Divisor tasks, across, groups;  // of a sample; pixel pairs of a row; 16-byte groups of a pixel; by aggregate_shape
};

// aggregate_backward: gradients of what went into X; a null pointer: not wanted.
struct AggregateBackwardParams {
  const void* grad;              // [n][h * w * c]
  const void *down, *keep, *up;  // as above; null where there is none, or no gradient of alphas is wanted
  const void* alphas;            // T [n][3], or null: all 1
  void *grad_down, *grad_keep, *grad_up;
  void* grad_alphas;  // T [n][3]
  double* partials;   // [n][tasks][3], where alphas have a gradient
  int* arrivals;      // [n], zero
  int n, h, w, c;
  Divisor tasks, across, groups;  // as above, by aggregate_backward_shape
};

}  // namespace dynroute::cuda
