// Checks of a network's configuration and image size, for the bindings of every device.
#pragma once
#include "bindings/checks.h"
#include "contract/geometry.h"

namespace dynroute {

inline NetworkConfig parse_config(const std::vector<int64_t>& config, const char* op) {
  const std::string what = std::string(op) + ": config: ";
  if (config.size() != kConfigSize) {
    std::string names;
    for (const ConfigField& field : kConfigFields) names += (names.empty() ? "" : ", ") + std::string(field.name);
    require(false, what + "wanted [" + names + "], got " + std::to_string(config.size()) + " numbers");
  }
  NetworkConfig parsed = {};
  for (size_t i = 0; i < config.size(); ++i) parsed.*kConfigFields[i].member = int(config[i]);
  require(parsed.layers >= kMinLayers,
          what + "wanted at least " + std::to_string(kMinLayers) + " layers, got " + std::to_string(parsed.layers));
  check_channels(what + "channels", parsed.channels, 8);
  check_channels(what + "stem_width", parsed.stem_width, 8);
  require(parsed.num_classes >= 1, what + "wanted at least 1 class, got " + std::to_string(parsed.num_classes));
  require(parsed.activation >= 0 && parsed.activation < kActivations, what + "wanted an activation of 0 to " +
                                                                          std::to_string(kActivations - 1) + ", got " +
                                                                          std::to_string(parsed.activation));
  require(parsed.cell_stacks >= 1 && parsed.cell_stacks <= kMaxCellStacks,
          what + "wanted 1 to " + std::to_string(kMaxCellStacks) + " cell_stacks, got " +
              std::to_string(parsed.cell_stacks));
  require(parsed.in_channels >= 1, what + "wanted at least 1 of in_channels, got " + std::to_string(parsed.in_channels));
  return parsed;
}

inline void check_size(const char* op, const NetworkConfig& config, int64_t h, int64_t w) {
  const int64_t smallest = smallest_side(config.small_gate);
  require(h >= smallest && w >= smallest && h % kSideMultiple == 0 && w % kSideMultiple == 0,
          std::string(op) + ": images: wanted height and width in multiples of " + std::to_string(kSideMultiple) +
              ", at least " + std::to_string(smallest) + ", got " + std::to_string(h) + "x" + std::to_string(w));
}

}  // namespace dynroute
