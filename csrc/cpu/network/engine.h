// The whole network as one call: stem, routing space, decoder; no torch here.
#pragma once
#include <cstdint>

#include "contract/network.h"
#include "tasks.h"
#include "workspace.h"

namespace dynroute {

struct NetworkArgs {
  int n, h, w, out_h, out_w;
  // inputs
  const float* images;   // [n, in_channels, h, w]
  const float* weights;  // flat, packed; pointwise panels in the storage's type
  const int64_t* table;  // [table_rows(layers), kTableFields]
  const float* gates;    // [n, layers + 1, kScales, kPaths] to force the alphas, or null
  float* workspace;      // [sizes.floats]
  // outputs
  float* logits;         // [n, classes, out_h, out_w]
  float* alphas;         // [n, layers + 1, kScales, kPaths], zeroed by the caller
  int64_t* node_macs;    // [n, layers + 1, kScales, kNodeParts] executed macs, zeroed by the caller
  int64_t* sample_macs;  // [n, kSampleParts] executed macs, zeroed by the caller
};

// sizes: of this call, made for the threads of `parallel`.
void network_forward(const NetworkConfig& config, const NetworkSizes& sizes, const NetworkArgs& args,
                     const Parallel& parallel);

}  // namespace dynroute
