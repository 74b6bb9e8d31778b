// The routing space's constants, for every device.
#pragma once

// Functions that device code calls too.
#if defined(__CUDACC__)
#define DYNROUTE_DEVICE_TOO __host__ __device__
#else
#define DYNROUTE_DEVICE_TOO
#endif

namespace dynroute {

constexpr int kScales = 4, kPaths = 3;
enum Path { kUp = 0, kKeep = 1, kDown = 2 };
enum class Activation { kTanh = 0, kSigmoid = 1, kSoftmax = 2, kFixed = 3 };

// a sample is closed at a node where its alphas sum to less, a path where its alpha is no more
constexpr double kThreshold = 1e-4;

// Rows: 0 is the init cell, l + 1 is layer l.
DYNROUTE_DEVICE_TOO constexpr int scales_of_row(int row) {
  return row == 0 ? 1 : row + 1 < kScales ? row + 1 : kScales;
}
DYNROUTE_DEVICE_TOO constexpr bool path_exists(int row, int rows, int scale, int path) {
  return path == kKeep || (row < rows - 1 && (path == kUp ? scale > 0 : scale < kScales - 1));
}

}  // namespace dynroute
