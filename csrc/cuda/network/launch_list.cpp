#include "launch_list.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/kernels/aggregate_route.h"
#include "cuda/kernels/cell.h"
#include "cuda/kernels/init_call.h"
#include "cuda/kernels/merge.h"
#include "cuda/kernels/predictor.h"
#include "cuda/kernels/sepconv.h"
#include "cuda/kernels/stage_paths.h"
#include "cuda/kernels/stem_conv.h"
#include "cuda/kernels/stem_planes.h"
#include "cuda/kernels/stem_stages.h"
#include "cuda/kernels/upsample.h"

namespace dynroute::cuda {
namespace {

// Buffers by number.
enum { kIo, kNodes, kCounts, kSamples, kArrivals, kPartials, kMaps = kPartials + kScales };
enum { kMap0, kMap1, kHalves, kMapsOfScale };
enum { kStemA = kMaps + kScales * kMapsOfScale, kStemB, kSmallLogits, kBuffers };
constexpr int map_buffer(int scale, int which) { return kMaps + scale * kMapsOfScale + which; }

int rows_of(const CallSpec& call) { return call.config.layers + 1; }
MapShape shape_of(const CallSpec& call, int scale) { return scale_shape(call.config, call.h, call.w, scale); }
MapShape stem_shape_of(const CallSpec& call) { return stem_shape(call.config, call.h, call.w); }

bool gates_are_computed(const CallSpec& call) { return Activation(call.config.activation) != Activation::kFixed; }

// Are the cells of this scale done by `cell`?
bool is_fused(const CallSpec& call, int scale) {
  if (call.fusion == Fusion::kStaged || call.config.cell_stacks != 2) return false;
  const MapShape map = shape_of(call, scale);
  return call.fusion == Fusion::kFused ? cell_fits(map.c, call.dtype, call.limits)
                                       : cell_pays(map, call.dtype, call.limits);
}

// Are the stem's stages done by `stem_stages`?
bool stem_is_fused(const CallSpec& call) {
  return call.fusion != Fusion::kStaged &&
         stem_stages_pay(stem_shape_of(call).c, shape_of(call, 0).c, call.dtype, call.limits);
}

// What blocks of a row count together: per node, aggregate_route's tasks and stage_paths' stage items; in all,
// aggregate_route's blocks and stage_paths' ticket.
int64_t arrivals_of_row(const CallSpec& call) { return 2 * (int64_t(call.n) * kScales + 1); }

// Numbers the buffers and says where in the workspace each lies.
//   [tables and partial sums, live from `init_call` to the end][maps, halves]
//   [ ... the same ...                                     ][stem A (map 0 of scale 0 over it)      ][stem B]
//                                    or, with both stages in one pass, [map 0 of scale 0][stem A]
//   [ ... the same ...                                     ][small logits, over maps][halves of scale 0]
// The stem's second map is live until the first map of scale 0 is written, and the decoder's last map, which lies in
// the halves of scale 0, until the small logits are. Everything else of one line is dead when the next one begins.
std::vector<Buffer> lay_out(const CallSpec& call, int64_t& end) {
  std::vector<Buffer> buffers(kBuffers);
  const int64_t rows = rows_of(call), n = call.n, value = bytes_of(call.dtype);
  end = 0;
  const auto put = [&](int number, std::string name, int64_t bytes, int64_t offset) {
    buffers[size_t(number)] = {std::move(name), bytes, offset};
    end = std::max(end, round_up(offset + bytes, kAlign));
  };
  const auto append = [&](int number, std::string name, int64_t bytes) { put(number, std::move(name), bytes, end); };

  append(kIo, "io", sizeof(Io));
  append(kNodes, "nodes", rows * n * kScales * int64_t(sizeof(Node)));
  append(kCounts, "counts", rows * kLists * kScales * int64_t(sizeof(int)));
  append(kSamples, "samples", rows * kLists * kScales * n * int64_t(sizeof(int)));
  append(kArrivals, "arrivals", rows * arrivals_of_row(call) * int64_t(sizeof(int)));
  for (int s = 0; s < kScales; ++s) {
    const int64_t sums = gates_are_computed(call) ? aggregate_partials(shape_of(call, s), call.n, call.dtype) : 0;
    append(kPartials + s, "partials" + std::to_string(s), sums * int64_t(sizeof(float)));
  }

  const int64_t start = end;
  for (int which : {kMap0, kMap1, kHalves})
    for (int s = 0; s < kScales; ++s) {
      if (which == kHalves && s == 0) continue;
      static const char* names[] = {"map0_", "map1_", "halves_"};
      append(map_buffer(s, which), names[which] + std::to_string(s), n * shape_of(call, s).size() * value);
    }
  const MapShape finest = shape_of(call, 0);
  const int64_t small_logits = n * finest.h * finest.w * call.config.num_classes * int64_t(sizeof(float));
  put(kSmallLogits, "small_logits", small_logits, start);
  append(map_buffer(0, kHalves), "halves_0", n * finest.size() * value);

  const int64_t stem = n * stem_shape_of(call).size() * value;
  const int64_t first_map = buffers[size_t(map_buffer(0, kMap0))].bytes;
  const bool fused = stem_is_fused(call);
  put(kStemA, "stem_a", stem, start + (fused ? round_up(first_map, kAlign) : 0));
  put(kStemB, "stem_b", fused ? 0 : stem, start + round_up(std::max(stem, first_map), kAlign));
  return buffers;
}

class LaunchListBuilder {
 public:
  LaunchListBuilder(const CallSpec& call, const std::vector<int64_t>& addresses, int64_t weights, const int64_t* table)
      : call_(call), rows_(rows_of(call)), addresses_(addresses), weights_(weights), table_(table) {
    for (int s = 0; s < kScales; ++s) maps_[s] = {{map(s, kMap0), map(s, kMap1)}, map(s, kHalves), shape_of(call_, s)};
  }

  Row row(int row) const {
    return row_at({buffer<Node>(kNodes), buffer<int>(kCounts), buffer<int>(kSamples)}, row, call_.n);
  }

  std::vector<Launch> all() {
    init_call();
    stem();
    for (int row = 0; row < rows_; ++row) {
      aggregate_route(row);
      cells(row);
    }
    decoder();
    return std::move(launches_);
  }

 private:
  const CallSpec& call_;
  const int rows_;
  const std::vector<int64_t>& addresses_;
  const int64_t weights_;
  const int64_t* const table_;
  ScaleMaps maps_[kScales];
  std::vector<Launch> launches_;

  template <class T>
  T* buffer(int number) const {
    return reinterpret_cast<T*>(addresses_[size_t(number)]);
  }
  void* map(int scale, int which) const { return buffer<void>(map_buffer(scale, which)); }
  const Io* io() const { return buffer<Io>(kIo); }

  const void* weight(int table_row, int field) const {
    const int64_t offset = table_[int64_t(table_row) * kTableFields + field];
    return offset < 0 ? nullptr : reinterpret_cast<const void*>(weights_ + offset);
  }
  const float* floats(int table_row, int field) const { return static_cast<const float*>(weight(table_row, field)); }
  Matrix matrix(int table_row, int field, int k, int n) const {
    return {weight(table_row, field), floats(table_row, field + 1), k, n, padded(k), padded(n)};
  }

  // The launch's shape also fills in what host and kernel have to agree on. channels: the largest number that it works
  // on, for the error.
  template <class Params, class ShapeOf>
  void launch(const char* kernel, ShapeOf shape_of_launch, Params params, int channels) {
    const LaunchShape shape = shape_of_launch(params, call_.dtype, call_.limits);
    if (shape.shared > call_.limits.shared_per_block)
      throw std::runtime_error(std::string("cuda_launches: ") + kernel + " at " + std::to_string(channels) +
                               " channels needs " + std::to_string(shape.shared) +
                               " bytes of shared memory per block, the device has " +
                               std::to_string(call_.limits.shared_per_block));
    const auto* bytes = reinterpret_cast<const unsigned char*>(&params);
    launches_.push_back({kernel, shape, {bytes, bytes + sizeof(Params)}});
  }
  int widest(int row) const { return maps_[scales_of_row(row) - 1].shape.c; }
  int* arrivals(int row) const { return buffer<int>(kArrivals) + row * arrivals_of_row(call_); }
  // What all kernels of a row are told.
  template <class Params>
  Params row_params(int row) const {
    Params p = {};
    p.io = io();
    p.row = this->row(row);
    std::copy(maps_, maps_ + kScales, p.maps);
    p.n = call_.n, p.row_index = row, p.rows = rows_;
    return p;
  }

  void init_call() {
    InitCallParams p = {};
    p.io = buffer<Io>(kIo);
    p.counters = buffer<int>(kArrivals);
    p.counter_count = int(rows_ * arrivals_of_row(call_));
    p.first = row(0);
    p.n = call_.n, p.rows = rows_;
    launch("init_call", init_call_shape, p, 0);
  }

  void stem() {
    const int row = stem_row(call_.config.layers);
    const MapShape half = stem_shape_of(call_), out = shape_of(call_, 0);
    void *a = buffer<void>(kStemA), *b = buffer<void>(kStemB);
    const auto convolution = [&](const char* kernel, const auto& shape_of_launch, auto p) {
      p.io = io();
      p.weight = matrix(row, kStemConv, stem_inputs(call_.config), half.c);
      p.out = a;
      p.n = call_.n, p.h_in = call_.h, p.w_in = call_.w, p.h_out = half.h, p.w_out = half.w;
      launch(kernel, shape_of_launch, p, half.c);
    };
    StemPlanesParams planes = {};
    planes.planes = call_.config.in_channels;
    if (call_.config.in_channels == kStemPlanes) convolution("stem_conv", stem_conv_shape, StemConvParams{});
    else convolution("stem_planes", stem_planes_shape, planes);

    if (stem_is_fused(call_)) {
      StemStagesParams s = {};
      s.io = io();
      s.x = a, s.out = map(0, kMap0);
      s.n = call_.n, s.h_in = half.h, s.w_in = half.w, s.h_out = out.h, s.w_out = out.w;
      for (int k = 0; k < 2; ++k) {
        const int field = stage_field(kStemStages, k);
        s.depthwise[k] = floats(row, field + kDepthwise);
        s.pointwise[k] = matrix(row, field + kPointwise, half.c, k == 0 ? half.c : out.c);
      }
      launch("stem_stages", stem_stages_shape, s, std::max(half.c, out.c));
      return;
    }
    const auto stage = [&](int field, const void* x, const MapShape& to, int stride, void* result) {
      SepconvParams q = {};
      q.io = io();
      q.n = call_.n, q.rows = rows_, q.stem = 1;
      SepconvStage& only = q.stage[0];
      only.depthwise = floats(row, field + kDepthwise);
      only.pointwise = matrix(row, field + kPointwise, half.c, to.c);
      only.c_in = half.c, only.stride = stride;
      only.h_in = half.h, only.w_in = half.w, only.h_out = to.h, only.w_out = to.w;
      only.from = only.to = kPlain;
      only.plain_x = x, only.plain_out = result;
      only.relu = 1;
      launch("sepconv", sepconv_shape, q, half.c);
    };
    stage(stage_field(kStemStages, 0), a, half, 1, b);
    stage(stage_field(kStemStages, 1), b, out, 2, map(0, kMap0));
  }

  void aggregate_route(int row) {
    auto p = row_params<AggregateRouteParams>(row);
    if (row < rows_ - 1) p.next = this->row(row + 1);
    for (int s = 0; s < scales_of_row(row) && gates_are_computed(call_); ++s) {
      const int at = node_row(row, s), c = maps_[s].shape.c;
      p.gate[s] = matrix(at, kGateConv, c, gate_channels(c));
      p.fc_weight[s] = floats(at, kGateFc);
      p.fc_bias[s] = floats(at, kGateFc + 1);
      p.partials[s] = buffer<float>(kPartials + s);
    }
    p.node_arrivals = arrivals(row);
    p.row_arrivals = p.node_arrivals + call_.n * kScales;
    p.activation = call_.config.activation;
    p.small_gate = call_.config.small_gate;
    launch("aggregate_route", aggregate_route_shape, p, widest(row));
  }

  // Of the cells, and what follows them.
  void cells(int row) {
    const int scales = scales_of_row(row), stacks = call_.config.cell_stacks;
    int fused = 0;
    for (int s = 0; s < scales; ++s) fused += is_fused(call_, s);
    if (fused > 0) cell(row);
    for (int k = 0; k < stacks - 1 && fused < scales; ++k) launch("sepconv", sepconv_shape, stage(row, k), widest(row));
    if (row < rows_ - 1 || fused < scales) stage_paths(row);
  }

  void cell(int row) {
    auto p = row_params<CellParams>(row);
    int channels = 0;
    for (int s = 0; s < scales_of_row(row); ++s) {
      if (!is_fused(call_, s)) continue;
      channels = maps_[s].shape.c;
      for (int k = 0; k < 2; ++k) {
        const int at = node_row(row, s), field = stage_field(kCellStages, k);
        p.depthwise[s][k] = floats(at, field + kDepthwise);
        p.pointwise[s][k] = matrix(at, field + kPointwise, channels, channels);
      }
    }
    launch("cell", cell_shape, p, channels);
  }

  // Stage k of the cells that are not fused. The last writes `out`; those before alternate between it and the halves,
  // whose sources X has been made of.
  SepconvParams stage(int row, int k) const {
    const int stacks = call_.config.cell_stacks;
    const auto target = [&](int i) { return (stacks - 1 - i) % 2 == 0 ? kOut : kBetween; };
    auto p = row_params<SepconvParams>(row);
    for (int s = 0; s < scales_of_row(row); ++s) {
      if (is_fused(call_, s)) continue;
      const int at = node_row(row, s), field = stage_field(kCellStages, k);
      const MapShape& shape = maps_[s].shape;
      SepconvStage& stage = p.stage[s];
      stage.depthwise = floats(at, field + kDepthwise);
      stage.pointwise = matrix(at, field + kPointwise, shape.c, shape.c);
      stage.c_in = shape.c, stage.stride = 1;
      stage.h_in = stage.h_out = shape.h, stage.w_in = stage.w_out = shape.w;
      stage.from = k == 0 ? kX : target(k - 1);
      stage.to = target(k);
      stage.residual = k == stacks - 1;
      stage.relu = 1;
    }
    return p;
  }

  void stage_paths(int row) {
    StagePathsParams p = {};
    p.cells = stage(row, call_.config.cell_stacks - 1);
    for (int s = 0; s < scales_of_row(row); ++s) {
      const int at = node_row(row, s), c = maps_[s].shape.c;
      if (path_exists(row, rows_, s, kUp)) p.up[s] = matrix(at, kUpConv, c, path_channels(c, kUp));
      if (path_exists(row, rows_, s, kDown)) p.down[s] = matrix(at, kDownConv, c, path_channels(c, kDown));
    }
    p.finished = arrivals(row) + call_.n * kScales + 1;
    p.ticket = p.finished + call_.n * kScales;
    launch("stage_paths", stage_paths_shape, p, widest(row));
  }

  // From 1/32 to 1/4; each scale's result takes its halves, which nothing reads any more.
  void decoder() {
    const int layers = call_.config.layers, classes = call_.config.num_classes;
    for (int s = kScales - 1; s >= 0; --s) {
      const int c = maps_[s].shape.c;
      MergeParams p = {};
      p.io = io();
      p.row = row(rows_ - 1);
      p.maps = maps_[s];
      p.scale = s;
      p.coarse = s < kScales - 1 ? map(s + 1, kHalves) : nullptr;
      p.weight = matrix(merge_row(layers, s), kOnlyConv, c, merge_channels(c, s));
      p.out = map(s, kHalves);
      p.n = call_.n;
      launch("merge", merge_shape, p, c);
    }
    const MapShape shape = shape_of(call_, 0);
    PredictorParams p = {};
    p.io = io();
    p.x = map(0, kHalves);
    p.weight = matrix(predictor_row(layers), kOnlyConv, 9 * shape.c, classes);
    p.out = buffer<float>(kSmallLogits);
    p.n = call_.n, p.h = shape.h, p.w = shape.w, p.c = shape.c;
    launch("predictor", predictor_shape, p, shape.c);

    UpsampleParams q = {};
    q.io = io();
    q.x = buffer<float>(kSmallLogits);
    q.n = call_.n, q.h = shape.h, q.w = shape.w, q.classes = classes, q.out_h = call_.out_h, q.out_w = call_.out_w;
    launch("upsample", upsample_shape, q, classes);
  }
};

}  // namespace

LaunchList::LaunchList(const CallSpec& call) : call_(call) { buffers_ = lay_out(call_, workspace_); }

std::vector<Launch> LaunchList::launches(const std::vector<int64_t>& addresses, int64_t weights,
                                         const int64_t* table) const {
  return LaunchListBuilder(call_, addresses, weights, table).all();
}

}  // namespace dynroute::cuda
