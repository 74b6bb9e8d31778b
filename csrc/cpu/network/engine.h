// The whole network as one call: stem, routing space, decoder; no torch here.
#pragma once
#include <cstdint>

#include "contract/network.h"
#include "tasks.h"

namespace dynroute {

struct NetworkArgs {
  // inputs
  const float* images;   // [n, 3, h, w]
  const float* weights;  // flat, packed; pointwise panels in the storage's type
  const int64_t* table;  // [table_rows(layers), kTableFields]
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
