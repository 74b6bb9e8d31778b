// What a call reads and writes, by sample, node and name: maps in the workspace, weights, alphas, counters.
#pragma once
#include "engine.h"

namespace dynroute {

template <class S>
class CallData {
 public:
  CallData(const NetworkConfig& config, const NetworkArgs& args, const SampleMaps& maps)
      : config_(config), args_(args), maps_(maps) {}

  const MapShape& shape(int s) const { return maps_.shape[s]; }

  // maps, in the workspace
  S* map(int i, int s, int which) const { return at(i, maps_.map[s][which]); }
  S* up_half(int i, int s) const { return at(i, maps_.halves[s]); }
  S* down_half(int i, int s) const { return at(i, maps_.halves[s] + maps_.shape[s].size() / 2); }
  S* small_logits(int i) const { return maps_.logits < 0 ? map(i, 0, 0) : at(i, maps_.logits); }
  float* partials(int i, int s) const { return reinterpret_cast<float*>(at(i, maps_.partials[s])); }

  // weights
  const float* weight(int table_row, int field) const {
    const int64_t offset = args_.table[int64_t(table_row) * kTableFields + field];
    return offset < 0 ? nullptr : args_.weights + offset;
  }
  Pointwise<S> pointwise(int table_row, int field, int k, int n) const {
    return {reinterpret_cast<const S*>(weight(table_row, field)), weight(table_row, field + 1), k, n};
  }
  // A depthwise 3x3 with padding 1, and a pointwise; first: a stage_field().
  RowStage<S> stage(int table_row, int first, const MapShape& in, const MapShape& out, int stride) const {
    return {weight(table_row, first + kDepthwise),
            pointwise(table_row, first + kPointwise, in.c, out.c),
            in.c,
            stride,
            1,
            in.h,
            in.w,
            out.h,
            out.w,
            true};
  }
  // A full 3x3 convolution.
  RowStage<S> convolution(int table_row, int field, const MapShape& in, const MapShape& out, int stride, int pad,
                          bool relu) const {
    return {nullptr, pointwise(table_row, field, 9 * in.c, out.c), in.c, stride, pad, in.h, in.w, out.h, out.w, relu};
  }

  // tables of the nodes, and of the samples
  const float* forced(int i, int row, int s) const { return args_.gates + index(i, row, s) * kPaths; }
  float* alphas(int i, int row, int s) const { return args_.alphas + index(i, row, s) * kPaths; }
  int64_t* node_macs(int i, int row, int s, int part) const {
    return args_.node_macs + index(i, row, s) * kNodeParts + part;
  }
  int64_t* sample_macs(int i, SamplePart part) const { return args_.sample_macs + int64_t(i) * kSampleParts + part; }

  // For sanitizers: nothing but maps is to be touched until the call is over.
  void forbid_gaps() const {
    for (int i = 0; i < args_.n; ++i)
      for (const auto& [begin, end] : maps_.gaps) guard::forbid(at(i, begin), size_t(end - begin) * sizeof(S));
  }
  size_t workspace_bytes() const { return size_t(args_.n * maps_.total) * sizeof(S); }

 private:
  S* at(int i, int64_t offset) const { return reinterpret_cast<S*>(args_.workspace) + i * maps_.total + offset; }
  int64_t index(int i, int row, int s) const { return node_index(i, config_.layers + 1, row, s); }

  const NetworkConfig& config_;
  const NetworkArgs& args_;
  const SampleMaps& maps_;
};

}  // namespace dynroute
