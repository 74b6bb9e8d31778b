// What the CUDA kernels are told: one plain struct per kernel, passed by value; no torch and no CUDA here, so that host
// code, nvcc and tests/support/cuda/structs.py (which mirrors this file, field by field) agree.
//
// The host never learns what is open. It launches the same kernels with the same arguments for every image; which nodes
// are present, open, and where their maps lie is written by the route step of one row and read from device memory by
// the kernels after it. Grids are for the worst case or smaller: blocks walk over the tiles that there really are.
//
// Maps are [n, h, w, c] in the storage type T (float, __half, __nv_bfloat16), everything else is float or an integer.
// A batch never changes a sample: nothing here may make the order of a sum depend on n or on who else is open.
#pragma once
#include <cstdint>

#include "contract/geometry.h"

namespace dynroute::cuda {

// Of a product's ring of weights: how many chunks come before they are needed; it has one buffer more. 2, 3 or 6: what
// wait_copies_but knows is one less.
constexpr int kLeastAhead = 2, kMostAhead = 6;
// A chunk is of `width` output channels and 64 bytes of each; the shortest ring.
DYNROUTE_DEVICE_TOO constexpr int chunk_bytes(int width) { return width * 64; }
DYNROUTE_DEVICE_TOO constexpr int least_ring_bytes(int width) { return (kLeastAhead + 1) * chunk_bytes(width); }
DYNROUTE_DEVICE_TOO constexpr int chunks_ahead(int fit) { return fit >= 6 ? 6 : fit >= 3 ? 3 : 2; }

constexpr int kThreads = 128;  // of every block, unless its kernel says otherwise

// Channels of a matrix, with zeros beyond the true ones.
constexpr int kPadding = 32;
DYNROUTE_DEVICE_TOO constexpr int padded(int channels) { return round_up(channels, kPadding); }

// Division of 0 to 2^31 - 1 by a positive number that the host knows: a product and a shift, where a device's own
// division takes twenty instructions.
struct Divisor {
  unsigned multiplier;  // 2^(31 + shift) / by, rounded up
  int shift, by;
  DYNROUTE_DEVICE_TOO constexpr operator int() const { return by; }
};
// Of 0 too, where nothing will be divided.
constexpr Divisor divisor(int by) {
  int shift = 0;
  while (int64_t(1) << shift < by) ++shift;
  return {unsigned(((uint64_t(1) << (31 + shift)) + by - 1) / (by < 1 ? 1 : by)), shift, by};
}
DYNROUTE_DEVICE_TOO constexpr int operator/(int value, const Divisor& by) {
  return int(uint64_t(2 * unsigned(value)) * by.multiplier >> 32) >> by.shift;
}
DYNROUTE_DEVICE_TOO constexpr int operator%(int value, const Divisor& by) { return value - value / by * by.by; }

// How a tile's output channels are cut into work items (pointwise.h).
struct Cut {
  int channels;   // of an item; a tile's last one may have fewer
  Divisor parts;  // items of a tile
};

// Pointwise weights, the BatchNorm's scale folded in. k_pad and n_pad are padded(k) and padded(n).
// T = __half, __nv_bfloat16: [n_pad][k_pad], what mma's "col" operand wants. T = float: [k_pad][n_pad].
// A k x k convolution is a pointwise one with index (ky * 3 + kx) * c_in + c.
struct Matrix {
  const void* weight;
  const float* shift;  // [n_pad]
  int k, n, k_pad, n_pad;
};

// The maps of one scale. Of a node's two maps one holds the keep source of a row and the other, once it is stored, X;
// H (or ReLU(H), as all its readers want that) then goes where the keep source was. `halves` holds the outgoing paths
// up [h, w, c/2] and, behind it, down [h/2, w/2, 2c]: they are read while X is aggregated, may then hold what lies
// between the stages of a cell [h, w, c], and are written last. Each buffer is [n][h * w * c] values.
struct ScaleMaps {
  void* map[2];
  void* halves;
  MapShape shape;
};
// Where a path's maps begin in halves, in values of a sample of `size` values.
DYNROUTE_DEVICE_TOO constexpr int64_t in_halves(int path, int64_t size) { return path == kDown ? size / 2 : 0; }

// One (row, sample, scale).
struct Node {
  // written by the route step of the row before (row 0: by `init_call`)
  int present;        // an absent node computes nothing; everything else about it is undefined
  int aliased;        // X is the keep source where it lies, with weight 1: there is nothing to store
  int x_map;          // which map X lies in once this row's aggregate_route has run; the keep source lies in
                      // map[aliased ? x_map : 1 - x_map]
  float source_down;  // weights of the sources; 0: closed, absent or none, and not to be read
  float source_keep;
  float source_up;
  // written by this row's route step
  int closed;
  int out_map;           // which map the node's keep output lies in once this row's cells have run
  float weight[kPaths];  // of the outgoing paths up, keep, down; 0: closed or none. A closed node: keep 1
  int unused;
};

// Which samples, per scale, in ascending order. The first of a row are written by the row before.
enum List { kPresent = 0, kOpen = 1, kUpOpen = 2, kDownOpen = 3, kLists = 4 };

// One row's tables in device memory. Those of all rows lie behind each other: row r's are row_at(row 0's, r, n).
struct Row {
  Node* nodes;   // [n][kScales]
  int* counts;   // [kLists][kScales]
  int* samples;  // [kLists][kScales][n]
};
DYNROUTE_DEVICE_TOO constexpr Row row_at(const Row& first, int row, int n) {
  return {first.nodes + int64_t(row) * n * kScales, first.counts + row * kLists * kScales,
          first.samples + int64_t(row) * kLists * kScales * n};
}

// Where a call's inputs and outputs are; itself in device memory, so that a captured graph serves every call.
struct Io {
  const float* images;   // [n, planes, h, w]
  const float* gates;    // [n, rows, 4, 3] forced alphas, or null
  float* logits;         // [n, classes, out_h, out_w], or null
  uint8_t* labels;       // [n, out_h, out_w] the class of the largest logit (the first of equal ones), or null
  float* alphas;         // [n, rows, 4, 3] by Path
  int64_t* node_macs;    // [n, rows, 4, 5] executed multiply-accumulates by NodePart
  int64_t* sample_macs;  // [n, 3] by SamplePart
};
// Counting: one thread of a block adds a tile's multiply-accumulates (true output sizes, taps on padding counted, halo
// and padded channels not) when the tile is finished, with atomicAdd on unsigned long long.

// init_call: before everything else. Stores `value` in *io, zeroes alphas, node_macs and sample_macs, the arrival
// counters of all rows, and all counts; makes row 0's nodes: scale 0 present, aliased in map 0, source_keep 1.
struct InitCallParams {
  Io value;
  Io* io;
  int* counters;  // [counter_count]
  int counter_count;
  Row first;  // row 0's tables
  int n, rows;
};

// stem_conv: 3x3, stride 2, no padding, images of 3 planes -> [n][h_out * w_out * width], ReLU.
struct StemConvParams {
  const Io* io;
  Matrix weight;  // k = kStemInputs, index (ky * 3 + kx) * 3 + channel
  void* out;
  int n, h_in, w_in, h_out, w_out;
  Divisor across, down;  // tiles in a row of a map, and rows of tiles; by stem_conv_shape
};

// stem_planes: the same for images of any number of planes.
struct StemPlanesParams {
  const Io* io;
  Matrix weight;  // k = 9 * planes, index (ky * 3 + kx) * planes + channel
  void* out;
  int n, h_in, w_in, h_out, w_out, planes;
  Divisor of_tap;        // planes
  Divisor across, down;  // tiles in a row of a map, and rows of tiles; all three by stem_planes_shape
};

// stem_stages: both stages of the stem, dw 3x3 (padding 1, stride 1, then 2) -> pointwise -> shift -> ReLU, in one
// pass.
struct StemStagesParams {
  const Io* io;
  const void* x;              // [n][h_in * w_in * width]
  void* out;                  // [n][h_out * w_out * pointwise[1].n]
  const float* depthwise[2];  // [9][width]
  Matrix pointwise[2];
  int n, h_in, w_in, h_out, w_out;
  Divisor across, down;  // tiles in a row of a map, and rows of tiles; by stem_stages_shape
};

// sepconv: one stage, dw 3x3 (padding 1, stride 1 or 2) -> pointwise -> shift [+ residual] [-> ReLU].
enum StageMap { kX = 0, kOut = 1, kBetween = 2, kPlain = 3 };  // of a node's maps, or a plain pointer
struct SepconvStage {
  const float* depthwise;  // [9][c_in]; null: this scale has no work in this launch
  Matrix pointwise;
  int c_in, h_in, w_in, h_out, w_out, stride;
  int from, to;         // StageMap
  const void* plain_x;  // where `from` is kPlain: [n][h_in * w_in * c_in]
  void* plain_out;
  int residual;  // add X of the node
  int relu;
  const void* plain_residual;  // what a plain stage adds, like plain_out; null: nothing
};
struct SepconvParams {
  const Io* io;
  Row row;  // of the nodes; plain stages read its list of open samples, or, where counts are null, do all
  ScaleMaps maps[kScales];
  SepconvStage stage[kScales];
  int n, row_index, rows;
  int stem;    // plain stages: multiply-accumulates are counted as the stem's
  int enough;  // work items that fill the device; by sepconv_shape
};

// cell: both stages of open samples' cells in one pass: out = ReLU(X + shift2 + pw2(dw2(ReLU(shift1 + pw1(dw1(X)))))).
struct CellParams {
  const Io* io;
  Row row;
  ScaleMaps maps[kScales];
  const float* depthwise[kScales][2];  // null: this scale's cells are done by sepconv launches instead
  Matrix pointwise[kScales][2];
  int n, row_index, rows;
};

// How a sample's map is cut into tiles and tasks, which aggregate_route.h says.
struct AggregateTiling {
  int blocks_y, blocks_x;   // of 4 x 4 pixels, in a tile
  int tiles, run;           // of the map; of a task (the last may have fewer)
  Divisor across;           // tiles in a row of the map
  Divisor tasks;            // of the map
  Divisor groups;           // 16-byte groups of a pixel's channels
  int whole;                // no tile reaches over the map's edges
  int width;                // output channels of the gate that are multiplied at a time, 32 or 64
  int shift, totals, ring;  // where they lie in shared memory, behind A: bytes
  int ahead, stays;         // chunks of its weights that are on their way while X is made; those are all, and stay
};

// aggregate_route: for present nodes X from its sources (down, keep, up through a bilinear x2, in this order), stored
// unless aliased; in the same pass, unless alphas are forced or fixed, the column sums of ReLU(1x1(X') + shift), X' = X
// or X at a quarter of the size. The last block to finish a node reduces its partial sums, in a fixed order, to alphas;
// the last of all does the row's routing: fills this row's nodes and lists, and the next row's nodes (present, sources)
// and present lists.
struct AggregateRouteParams {
  const Io* io;
  Row row, next;  // next: null pointers for the last row
  ScaleMaps maps[kScales];
  Matrix gate[kScales];             // weight null: gate = fixed
  const float* fc_weight[kScales];  // [g][c/2], g = the node's number of paths; in the order keep, up, down
  const float* fc_bias[kScales];    // [g]
  float* partials[kScales];         // [n][tasks][n_pad]
  int* node_arrivals;               // [n][kScales], zero
  int* row_arrivals;                // [1], zero
  int activation;                   // Activation
  int small_gate;
  int n, row_index, rows;
  AggregateTiling tiling[kScales];  // by aggregate_route_shape
};

// stage_paths: the last stage of the cells that go by stages, and the outgoing paths of all open nodes: up =
// ReLU(1x1(ReLU(H))) and down (stride 2); H lies ReLU'd in map[out_map]. A path of a node whose stage is done here
// waits for it.
struct PathCut {
  int of_sample;  // items; 0: there is no path
  Cut part;
};
struct StagePathsParams {
  SepconvParams cells;                // depthwise null: the scale has no cells in this row, or their H is there already
  Matrix up[kScales], down[kScales];  // weight null: none at this scale
  int* finished;                      // [n][kScales], zero: how many of a node's stage items are done
  int* ticket;                        // [1], zero: how many items have been taken
  PathCut cuts[2][kScales];           // of up, of down; by stage_paths_shape
  Divisor half_w[kScales];            // of down's results
};

// merge: the decoder's f = ReLU(1x1(f_s + bilinear_x2(f_{s+1}))), all samples; an absent f_s is zero.
struct MergeParams {
  const Io* io;
  Row row;  // the last row's: f_s = weight[kKeep] * map[out_map] where present, as its alpha scales the keep output
  ScaleMaps maps;
  int scale;
  const void* coarse;  // [n][h/2 * w/2 * c] or null
  Matrix weight;
  void* out;  // [n][h * w * weight.n]
  int n;
  Cut part;
  Divisor tiles, across;  // tiles of a map, in a row of it; by merge_shape
};

// predictor: 3x3, padding 1, with bias -> [n][h * w * classes] float.
struct PredictorParams {
  const Io* io;
  const void* x;  // [n][h * w * c]
  Matrix weight;  // k = 9 * c
  float* out;
  int n, h, w, c;
  Divisor tiles, across;  // as above
  Divisor groups;         // 16-byte groups of a pixel's channels
};

// upsample: bilinear x4, cropped, to logits as planes and / or labels, as io says.
struct UpsampleParams {
  const Io* io;
  const float* x;  // [n][h * w * classes]
  int n, h, w, classes, out_h, out_w;
  Divisor tiles, across;  // as above
};

// How the host launches a kernel; each kernel's header has a function that says so, in plain C++.
struct LaunchShape {
  int blocks;   // enough for the worst case, at most what runs at once where blocks walk over tiles
  int threads;  // per block
  int shared;   // bytes of dynamic shared memory
};
constexpr int kReservedShared = 1 << 10;  // bytes that the system takes of each block's
struct DeviceLimits {
  int capability = 80;               // 10 * major + minor
  int multiprocessors = 108;         //
  int shared_per_block = 163 << 10;  // with opt-in
  int shared_per_multiprocessor = 164 << 10;
};
enum class DType : int { kFloat = 0, kHalf = 1, kBfloat16 = 2 };
constexpr int bytes_of(DType dtype) { return dtype == DType::kFloat ? 4 : 2; }

}  // namespace dynroute::cuda
