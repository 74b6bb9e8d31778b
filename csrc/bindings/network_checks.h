// Checks of a network's configuration and image size, for the bindings of every device.
#pragma once
#include "checks.h"
#include "contract/network.h"
#include "contract/space.h"

namespace dynroute {

inline NetworkConfig parse_config(const std::vector<int64_t>& config, const char* op) {
  const std::string what = std::string(op) + ": config: ";
  require(config.size() == 8,
          what +
              "wanted [layers, channels, stem_width, num_classes, activation, small_gate, cell_stacks, "
              "bf16_storage], got " +
              std::to_string(config.size()) + " numbers");
  const NetworkConfig parsed = {int(config[0]), int(config[1]), int(config[2]), int(config[3]),
                                int(config[4]), config[5] != 0, int(config[6]), config[7] != 0};
  require(parsed.layers >= 4, what + "wanted at least 4 layers, got " + std::to_string(parsed.layers));
  check_channels(what + "channels", parsed.channels, 8);
  check_channels(what + "stem_width", parsed.stem_width, 8);
  require(parsed.classes >= 1, what + "wanted at least 1 class, got " + std::to_string(parsed.classes));
  require(parsed.activation >= 0 && parsed.activation <= 3,
          what + "wanted an activation of 0 to 3, got " + std::to_string(parsed.activation));
  require(parsed.cell_stacks >= 1 && parsed.cell_stacks <= 3,
          what + "wanted 1 to 3 cell_stacks, got " + std::to_string(parsed.cell_stacks));
  return parsed;
}

inline void check_size(const char* op, const NetworkConfig& config, int64_t h, int64_t w) {
  const int64_t least = config.small_gate ? 128 : 32;
  require(h >= least && w >= least && h % 32 == 0 && w % 32 == 0,
          std::string(op) + ": images: wanted height and width in multiples of 32, at least " + std::to_string(least) +
              ", got " + std::to_string(h) + "x" + std::to_string(w));
}

}  // namespace dynroute
