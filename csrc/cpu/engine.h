// The whole network as one call: stem, routing space, decoder; no torch here.
#pragma once
#include <cstdint>

#include "tasks.h"

namespace dynroute {

struct NetworkConfig {
  int layers, channels, stem_width, classes;
  int activation;  // Activation
  bool small_gate;
  int cell_stacks;    // 1 to 3
  bool bf16_storage;  // maps and pointwise weights are kept in bfloat16, computed with in float
};

// Fields of a row of the weight table; offsets in floats, -1 where there is none.
constexpr int kTableFields = 17;
enum CellField {
  kCell = 0,
  kUpWeight = 9,
  kDownWeight = 11,
  kGateConv = 13,
  kGateFc = 15
};  // each followed by its shift
enum StemField { kStemConv = 0, kStemStage1 = 2, kStemStage2 = 5 };
inline int64_t table_rows(int layers) { return (int64_t(layers) + 1) * 4 + 6; }

struct NetworkArgs {
  // inputs
  const float* images;   // [n, 3, h, w]
  const float* weights;  // flat, packed; pointwise panels in the storage's type
  const int64_t* table;  // [(layers + 1) * 4 + 6, 17]
  const float* gates;    // [n, layers + 1, 4, 3] to force the alphas, or null
  int n, h, w, out_h, out_w;
  float* workspace;  // [network_workspace(..., parallel.threads())]
  // outputs
  float* logits;   // [n, classes, out_h, out_w]
  float* alphas;   // [n, layers + 1, 4, 3] in the order up, keep, down, zeroed by the caller
  int64_t* nodes;  // [n, layers + 1, 4, 5] executed macs of gate, cell, up, keep, down, zeroed by the caller
  int64_t* other;  // [n, 3] executed macs of stem, decoder, halo, zeroed by the caller
};

// Floats of workspace; a batch that goes through in groups needs that of one group.
int64_t network_workspace(const NetworkConfig& config, int n, int h, int w, int threads);
void network_forward(const NetworkConfig& config, const NetworkArgs& args, const Parallel& parallel);

}  // namespace dynroute
