// A network as native code is told of it, on every device: its configuration, and the table of offsets into its packed
// weights. How a weight is laid out is the device's affair (dynroute/runtime/weights packs it).
#pragma once
#include <cstdint>

#include "contract/space.h"

namespace dynroute {

constexpr int kMinLayers = kScales, kMaxCellStacks = 3;
struct NetworkConfig {
  int layers, channels, stem_width, num_classes;
  int activation;    // Activation
  int small_gate;    // 0 or 1
  int cell_stacks;   // 1 to kMaxCellStacks
  int bf16_storage;  // 0 or 1; CPU: maps and pointwise weights are kept in bfloat16, computed with in float
  int in_channels;   // of the images
};
// The order in which a configuration passes through Python, as int[] (dynroute/native/contract.py, ConfigNumbers).
using ConfigMember = int NetworkConfig::*;
struct ConfigField {
  const char* name;
  ConfigMember member;
};
constexpr ConfigField kConfigFields[] = {
    {"layers", &NetworkConfig::layers},           {"channels", &NetworkConfig::channels},
    {"stem_width", &NetworkConfig::stem_width},   {"num_classes", &NetworkConfig::num_classes},
    {"activation", &NetworkConfig::activation},   {"small_gate", &NetworkConfig::small_gate},
    {"cell_stacks", &NetworkConfig::cell_stacks}, {"bf16_storage", &NetworkConfig::bf16_storage},
    {"in_channels", &NetworkConfig::in_channels},
};
constexpr int kConfigSize = sizeof(kConfigFields) / sizeof(kConfigFields[0]);

// The weight table [table_rows(layers)][kTableFields]: offsets in floats (CPU) or bytes (CUDA), -1 where there is none.
// A row for each (row of the space, scale), then the stem's, one for each of the decoder's merges, the predictor's.
constexpr int node_row(int row, int scale) { return row * kScales + scale; }
constexpr int stem_row(int layers) { return (layers + 1) * kScales; }
constexpr int merge_row(int layers, int scale) { return stem_row(layers) + 1 + scale; }
constexpr int predictor_row(int layers) { return merge_row(layers, kScales); }
constexpr int table_rows(int layers) { return predictor_row(layers) + 1; }

// Fields of a row. A convolution's weight is followed by its shift; a stage is a depthwise, and a pointwise with its shift.
enum WeightField {
  kDepthwise = 0,
  kPointwise = 1,
  kShift = 2,
  kStageFields = 3,
  // of a node
  kCellStages = 0,  // up to three
  kUpConv = 9,
  kDownConv = 11,
  kGateConv = 13,
  kGateFc = 15,
  kTableFields = 17,
  // of the stem
  kStemConv = 0,
  kStemStages = 2,  // two
  // of a merge, and of the predictor
  kOnlyConv = 0,
};
constexpr int stage_field(int first, int stage) { return first + stage * kStageFields; }
struct NamedField {
  const char* name;
  WeightField field;
};
constexpr NamedField kWeightFields[] = {
    {"depthwise", kDepthwise},     {"pointwise", kPointwise}, {"shift", kShift},         {"stage_fields", kStageFields},
    {"cell_stages", kCellStages},  {"up_conv", kUpConv},      {"down_conv", kDownConv},  {"gate_conv", kGateConv},
    {"gate_fc", kGateFc},          {"stem_conv", kStemConv},  {"stem_stages", kStemStages}, {"only_conv", kOnlyConv},
    {"table_fields", kTableFields},
};

}  // namespace dynroute
