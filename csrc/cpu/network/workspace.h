// What a call's sizes come to: how many samples go through the network together, and where their maps lie in the
// workspace. No torch here.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "contract/geometry.h"
#include "cpu/kernels/guard.h"
#include "cpu/kernels/tasks_of_jobs.h"
#include "cpu/planner/planner.h"

namespace dynroute {

// Where one sample's maps lie, in stored values (float or bfloat16) from the sample's beginning on. The gates' partial
// sums are floats; the small logits may take one of the maps.
struct SampleMaps {
  MapShape shape[kScales];
  int64_t map[kScales][2], halves[kScales], partials[kScales];
  int64_t logits;  // -1: in a free map of scale 1/4
  int64_t total = 0;
  std::vector<std::pair<int64_t, int64_t>> gaps;  // behind each part, if there are sanitizers to watch them

  SampleMaps(const NetworkConfig& config, int h, int w) {
    const int64_t value_bytes = config.bf16_storage ? sizeof(bf16) : sizeof(float);
    const auto take = [&](int64_t size) {
      const int64_t at = total;
      total += round_up(size, 64 / value_bytes) + guard::kFloats;
      if constexpr (guard::kFloats > 0) gaps.push_back({at + size, total});
      return at;
    };
    for (int s = 0; s < kScales; ++s) {
      shape[s] = scale_shape(config, h, w, s);
      for (int64_t& one : map[s]) one = take(shape[s].size());
      halves[s] = take(shape[s].size());
      partials[s] = take(cuts::gate_tasks(shape[s].h, shape[s].w, config.small_gate) *
                         int64_t(round_up(gate_channels(shape[s].c), kPanel)) * int64_t(sizeof(float)) / value_bytes);
    }
    // the map of scale 1/4 has room unless there are more classes than channels
    logits = config.num_classes <= config.channels ? -1 : take(int64_t(shape[0].h) * shape[0].w * config.num_classes);
  }
};

// Of a call with images [n, in_channels, h, w]: made once, compared with the given workspace, and run with.
struct NetworkSizes {
  int together;     // samples that go through the network at the same time; one group after the other
  SampleMaps maps;  // of each of them
  int64_t floats;   // of workspace: that of one group

  NetworkSizes(const NetworkConfig& config, int n, int h, int w, int threads)
      : together(samples_together(n, h, w, threads)), maps(config, h, w), floats(maps.total * together) {
    if (config.bf16_storage) floats = ceil_div(floats, int64_t(2));
  }
};

}  // namespace dynroute
