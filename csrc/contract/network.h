// A network as native code is told of it, on every device: its configuration, and the table of offsets into its packed
// weights. How a weight is laid out is the device's affair (dynroute/runtime/folding.py packs it).
#pragma once
#include <cstdint>

namespace dynroute {

struct NetworkConfig {
  int layers, channels, stem_width, classes;
  int activation;  // Activation
  bool small_gate;
  int cell_stacks;    // 1 to 3
  bool bf16_storage;  // CPU: maps and pointwise weights are kept in bfloat16, computed with in float
};

// Fields of a row of the weight table; offsets in floats (CPU) or bytes (CUDA), -1 where there is none.
constexpr int kTableFields = 17;
enum CellField {
  kCell = 0,
  kUpWeight = 9,
  kDownWeight = 11,
  kGateConv = 13,
  kGateFc = 15
};  // each followed by its shift
enum StemField { kStemConv = 0, kStemStage1 = 2, kStemStage2 = 5 };
// A row for each (row of the space, scale), then the stem, the decoder's four merges, the predictor.
inline int64_t table_rows(int layers) { return (int64_t(layers) + 1) * 4 + 6; }

}  // namespace dynroute
