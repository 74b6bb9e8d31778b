// What the kernels of training are told. A stage is [depthwise 3x3 ->] pointwise product, whose output is stored raw:
// BatchNorm has to see all of it first, and is applied by whoever reads it. So what a kernel reads is described, not
// pointed at: a `TrainSource` is a map that is made of stored ones value by value, a `TrainGradient` the gradient of a
// raw output. Nothing that lies behind a BatchNorm is stored but for what an operator returns.
//
// Maps are [n][h * w * c] in the storage type T; weights, statistics, sums and their gradients are float. Sums over
// pixels are partial sums of tasks, whose cuts depend on shapes alone, added up in order, in double. What takes part is
// known on the device alone, as in inference: kernels read the list.
#pragma once
#include "params_ops.h"

namespace dynroute::cuda {

constexpr int kTrainThreads = 256;

// The samples of a batch that take part; null: all.
struct TrainSamples {
  OpenSamples list;
  uint8_t* taken;  // [n]
};

// What a product or a depthwise reads.
enum SourceKind {
  kAsIs = 0,       // map
  kRectified = 1,  // ReLU(map)
  kNormed = 2,     // ReLU(scale * map + shift): a raw output behind its BatchNorm
  kHidden = 3,     // ReLU(factor * (scale * raw + shift) + map): a node's H
  kQuarter = 4     // map at a quarter of its size, bilinear: h x w is the small map's
};
struct TrainSource {
  const void* map;             // [n][h * w * c]; kQuarter: [n][from_h * from_w * c]
  const void* raw;             // kHidden
  const float *scale, *shift;  // [c]
  const float* factor;         // [n], or null: 1
  int kind, h, w, c;
  int from_h, from_w;
};

// A raw output behind its BatchNorm, and a ReLU that stands there: gradients pass where scale * raw + shift [+
// residual] is above 0.
struct TrainNormed {
  const void* raw;             // [n][h * w * c]
  const float *mean, *invstd;  // [c]
  const float *scale, *shift;  // [c]
  const void* residual;        // like raw, or null
  int relu;
};

// The gradient of a raw output: gain * (g - mean_grad) + slope * (raw - mean), where g is `weight` * grad where the
// ReLU lets it pass. The two parts nearly cancel where few pixels make the statistics: so they are centred first.
struct TrainGradient {
  TrainNormed of;
  const void* grad;                       // [n][h * w * c], or null:
  const float* of_samples;                // [n][c], of every pixel of a sample
  const float* weight;                    // [n], or null: 1
  const float *gain, *slope, *mean_grad;  // [c]
  int h, w, c;
};

// train_prepare: weights into the kernels' layouts; alphas, or a mask, into lists.
constexpr int kMostConvolutions = 5;  // three stages of a cell, and two paths
struct TrainMatrix {
  const float* weight;  // [rows][columns]; null: there is none
  Matrix to;            // transposed: of weight's transpose
  int transposed;
};
struct TrainTaps {
  const float* weight;  // [c][9]; null: there is none
  float* to;            // [9][c]
  int c;
};
struct TrainAffine {  // what a BatchNorm amounts to, from a forward's statistics
  const float *gamma, *beta;
  const float* stats;  // [3][c]; null: there is none
  float *scale, *shift;
  int c;
};
// What alphas mean for each sample: keep = hidden * H + x * X, and the paths' weights.
struct TrainShares {
  const float* alphas;            // [n][3]; null: there are none, and `mask` says what takes part
  float *hidden, *x, *up, *down;  // [n]
  float bridge;
  int skip, has_up, has_down;
};
struct TrainPrepareParams {
  TrainMatrix matrix[kMostConvolutions];
  TrainTaps taps[3];
  TrainAffine affine[kMostConvolutions];
  TrainShares shares;
  const uint8_t* mask;          // [n] 0 or 1
  TrainSamples open, up, down;  // null where nobody asks
  void* cleared;                // [n][cleared_size] T: zeros for samples that the mask leaves out; or null
  int64_t cleared_size;
  int n;
};

// train_forward: raw outputs, and of each tile of pixels of each listed sample, by channel, a pivot and the sums of
// distances from it and of their squares.
constexpr int kTileSums = 3;
struct TrainForwardJob {
  TrainSource source;
  const float* taps;  // [9][c]; null: there is no depthwise
  Matrix product;     // weight null: there is no job
  void* raw;          // [n][h * w * product.n]
  float* partials;    // [listed tiles][kTileSums][product.n]
  TrainSamples samples;
  int stride, h, w;  // of the output
};
struct TrainForwardParams {
  TrainForwardJob job[2];
  int n;
  int enough;  // items that fill the device; by train_forward_shape
};

// train_norm: a BatchNorm's statistics, and what it amounts to. Several processes that share it: first `mine` is made,
// and when all of them lie in `everyone`, the rest.
struct TrainNormJob {
  const float* partials;  // [listed tiles][kTileSums][c]
  TrainSamples samples;
  const float *gamma, *beta, *running_mean, *running_var;
  float* stats;            // [3][c] mean, inverse deviation, unbiased variance
  float *scale, *shift;    // [c]
  double* mine;            // [1 + 2 c] pixels, means, squared distances; null: nobody shares it
  const double* everyone;  // [processes][1 + 2 c], or null: they are made from partials
  int c, h, w, frozen;      // c 0: there is no job
  Divisor across, tiles;  // of a row of a map, of a map; by train_norm_shape
};
struct TrainNormParams {
  TrainNormJob job[2];
  float eps;
  int n, processes, stride;  // stride: of `mine` and `everyone`, from a process's values to the next
};

// train_apply: out = weight * [ReLU](factor * (scale * raw + shift) + x) + x_weight * x, of samples that take part;
// x_weight * x of others.
struct TrainApplyJob {
  const void* raw;  // [n][pixels * c]
  const float *scale, *shift;
  const float* factor;    // [n], or null: 1
  const void* x;          // like raw, or null
  const float* weight;    // [n], or null: 1
  const float* x_weight;  // [n], or null: 0
  void* out;              // like raw; null: there is no job
  void* cleared;          // [stages][n][pixels * c]: zeros for samples that do not take part; or null
  TrainSamples samples;
  int pixels, c, relu, stages;
};
struct TrainApplyParams {
  TrainApplyJob job[3];
  int n;
};

// train_sums: sums of BatchNorm's backward over a run of a sample's pixels: of g and of g * (raw - mean) * invstd,
// where g is as in TrainGradient; and of grad times the ReLU's output.
struct TrainSumsJob {
  TrainNormed of;
  const void* grad;     // null: there is no job
  const float* weight;  // [n], or null: 1
  float* partials;      // [listed][runs][2][c]
  float* dots;          // [n][runs][chunks], or null
  TrainSamples samples;
  int pixels, c;
};
struct TrainSumsParams {
  TrainSumsJob job[2];
  int n;
};

// train_norm_backward: what a gradient of a raw output is made with, and the gradients of gamma and beta. Processes as
// in train_norm.
struct TrainNormBackwardJob {
  const float* partials;  // [listed][runs][rows][c], of which two rows are read, from `row` on
  TrainSamples samples;
  const float *gamma, *invstd;
  float *gain, *slope, *mean_grad;  // [c]
  float *grad_gamma, *grad_beta;
  double* mine;  // [1 + 2 c]
  const double* everyone;
  int c, pixels, runs, rows, row, frozen;  // c 0: there is no job
};
struct TrainNormBackwardParams {
  TrainNormBackwardJob job[2];
  int n, processes, stride;
};

// train_product: the input's gradient of a pointwise product. Each output pixel has a cell of step x step input pixels,
// of which those from `first` to `last` in both directions get `share` of it and the others zeros; the last row and
// column of cells end where the map does.
struct TrainProductJob {
  TrainGradient gradient;
  Matrix transposed;      // k = c of the gradient; weight null: there is no job
  void* out;              // [n][h * w * transposed.n]
  const void* rectified;  // like out: the map whose ReLU was read; or null
  TrainSamples samples;
  int h, w;  // of out
  int step, first, last;
  float share;
};
struct TrainProductParams {
  TrainProductJob job[2];
  int n;
  int enough;  // as above
};

// train_outer: the gradient of a product's weights, gradient^T * input, in parts of the listed tiles.
struct TrainOuterJob {
  TrainGradient gradient;
  TrainSource source;
  const float* taps;  // as TrainForwardJob's
  float* partials;    // [splits][gradient.c][source.c]; null: there is no job
  TrainSamples samples;
  int stride, splits;
};
struct TrainOuterParams {
  TrainOuterJob job[2];
  int n;
};

// train_depthwise: the gradient of what a depthwise read, behind its ReLU if it has one, and of the taps; sums for the
// BatchNorm before it.
struct TrainDepthwiseParams {
  TrainSource source;
  const void* grad;   // [n][h * w * c]: of the depthwise's output
  const float* taps;  // [9][c]
  const void* added;  // [n][source.h * source.w * c], where `passed` lets it through: added; or null
  TrainNormed passed;
  const void* more;  // like added, times more_weight [n]; or null
  const float* more_weight;
  const float *mean, *invstd;  // of the source's BatchNorm; null: no sums
  void* grad_x;                // like added; null: not wanted
  float* partials;             // [listed][runs][11][c]: taps, then the two sums; null: not wanted
  TrainSamples samples;
  int n, h, w, stride;
};
constexpr int kDepthwiseRows = 11, kDepthwiseSums = 9;

// train_hidden: the gradient of what H's ReLU read, from keep and both paths, and sums for the BatchNorm before it; for
// samples that do not take part, x's.
struct TrainHiddenParams {
  TrainSource hidden;
  const void* grad_keep;                  // [n][h * w * c], or null
  const void *of_up, *of_down;            // H's gradient by a path; down's at every second pixel and row; or null
  const uint8_t *up_taken, *down_taken;   // [n], or null: all
  const float *hidden_weight, *x_weight;  // [n]
  const float *mean, *invstd;             // [c]
  void* grad_hidden;
  void* grad_x;     // of samples that do not take part; null: not wanted
  float* partials;  // [listed][runs][2][c]: of factor * grad_hidden
  float* dots;      // [n][runs][chunks][2]: of grad_keep * H and of grad_keep * x
  TrainSamples samples;
  int n, closed_dots;  // whether the latter is wanted of samples that do not take part
  Divisor w;           // hidden.w; by train_hidden_shape
};

// train_reduce: sums over parts, in order.
struct TrainReduction {
  const float* from;     // [parts][stride]; null: there is none
  float* out;            // [size], in fours
  TrainSamples samples;  // parts: `parts` of each listed sample, or, where `all`, so many in all
  int all, parts, size, stride;
  int taps;  // from is [9][c] and out [c][9]; 0: as it lies
};
constexpr int kMostReductions = 8;
struct TrainReduceParams {
  TrainReduction list[kMostReductions];
  int n;
};

// train_alphas: the alphas' gradients from dots.
struct TrainAlphasParams {
  const float *up_dots, *down_dots;              // [n][up_parts], or null
  const float* dots;                             // [n][parts][2], or null
  const uint8_t *taken, *up_taken, *down_taken;  // null: all
  const float* x_weight;
  float* grad_alphas;  // [n][3]
  int n, up_parts, down_parts, parts;
  float bridge;
};

// The gate's: train_gate_pool, sums of what is pooled, over a run of a sample's pixels; train_gate_end, a sample's
// mean, logits and alphas; train_gate_begin, from the alphas' gradients to those of every pixel.
constexpr int kPooled = 0, kAbove = 1, kApart = 2, kPoolSums = 3;
struct TrainGatePoolParams {
  TrainNormed of;
  float* partials;  // [n][runs][kPoolSums][c]
  int n, pixels, c;
};
struct TrainGateEndParams {
  const float* partials;
  const float *fc_weight, *fc_bias;  // [gates][c], [gates]
  float* pool;                       // [n][kPoolSums][c]: the mean; pixels above 0; the sum there of raw - mean
  float* alphas;                     // [n][3]
  int columns[kPaths];               // where each logit's alpha goes
  int n, pixels, runs, c, gates, activation;
};
struct TrainGateBeginParams {
  const float *grad, *alphas;  // [n][3]
  const float* pool;
  const float* fc_weight;
  const float* invstd;
  float* of_samples;  // [n][c]: of every pixel that the ReLU lets through
  float* partials;    // [n][2][c], as train_sums' of one run
  float *grad_fc_weight, *grad_fc_bias;
  int columns[kPaths];
  int n, pixels, c, gates, activation;
};

}  // namespace dynroute::cuda
