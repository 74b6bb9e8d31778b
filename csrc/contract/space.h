// The routing space, for every device: its constants, its wiring, and the parts that work is counted by. No torch here.
#pragma once
#include <cstdint>

// Functions that device code calls too.
#if defined(__CUDACC__)
#define DYNROUTE_DEVICE_TOO __host__ __device__
#else
#define DYNROUTE_DEVICE_TOO
#endif

namespace dynroute {

constexpr int kScales = 4, kPaths = 3;
enum Path { kUp = 0, kKeep = 1, kDown = 2 };
constexpr const char* kPathNames[kPaths] = {"up", "keep", "down"};
// The order of a gate's outputs in published checkpoints, as far as the node has the path.
constexpr Path kPublishedOrder[kPaths] = {kKeep, kUp, kDown};

enum class Activation { kTanh = 0, kSigmoid = 1, kSoftmax = 2, kFixed = 3 };
constexpr const char* kActivationNames[] = {"tanh", "sigmoid", "softmax", "fixed"};
constexpr int kActivations = 4;

// A sample is closed at a node where its alphas sum to less, a path where its alpha is no more.
constexpr double kThreshold = 1e-4;

// What work is counted by: parts of a node, and what a sample has besides its nodes.
enum NodePart { kGatePart = 0, kCellPart = 1, kUpPart = 2, kKeepPart = 3, kDownPart = 4, kNodeParts = 5 };
constexpr const char* kNodePartNames[kNodeParts] = {"gate", "cell", "up", "keep", "down"};
DYNROUTE_DEVICE_TOO constexpr int part_of_path(int path) { return kUpPart + path; }
enum SamplePart { kStemPart = 0, kDecoderPart = 1, kHaloPart = 2, kSampleParts = 3 };
constexpr const char* kSamplePartNames[kSampleParts] = {"stem", "decoder", "halo"};

// Rows: 0 is the init cell, l + 1 is layer l; `rows` of them are layers + 1.
DYNROUTE_DEVICE_TOO constexpr int scales_of_row(int row) {
  return row == 0 ? 1 : row + 1 < kScales ? row + 1 : kScales;
}
DYNROUTE_DEVICE_TOO constexpr bool path_exists(int row, int rows, int scale, int path) {
  return path == kKeep || (row < rows - 1 && (path == kUp ? scale > 0 : scale < kScales - 1));
}
// Where a path leads: up to the next finer scale, down to the next coarser one.
DYNROUTE_DEVICE_TOO constexpr int target_scale(int scale, int path) { return scale + path - kKeep; }
// And where one that leads here comes from.
DYNROUTE_DEVICE_TOO constexpr int source_scale(int scale, int path) { return scale - path + kKeep; }

// Where a node's values begin in tables [n][rows][kScales].
DYNROUTE_DEVICE_TOO constexpr int64_t node_index(int64_t sample, int rows, int row, int scale) {
  return (sample * rows + row) * kScales + scale;
}

}  // namespace dynroute
