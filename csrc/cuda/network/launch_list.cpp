#include "launch_list.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/kernels/aggregate.h"
#include "cuda/kernels/begin.h"
#include "cuda/kernels/cell.h"
#include "cuda/kernels/merge.h"
#include "cuda/kernels/predictor.h"
#include "cuda/kernels/sepconv.h"
#include "cuda/kernels/stem.h"
#include "cuda/kernels/tail.h"
#include "cuda/kernels/upsample.h"

namespace dynroute::cuda {
namespace {

// Buffers by number.
enum { kIo, kRows, kNodes, kCounts, kSamples, kArrivals, kPartials, kMaps = kPartials + kScales };
enum { kMap0, kMap1, kHalves, kMapsOfScale };
enum { kStemA = kMaps + kScales * kMapsOfScale, kStemB, kSmallLogits, kBuffers };
constexpr int map_buffer(int scale, int which) { return kMaps + scale * kMapsOfScale + which; }

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
int padded(int channels) { return (channels + 31) / 32 * 32; }

struct Shape {
  int h, w, c;
  int64_t size() const { return int64_t(h) * w * c; }
};
Shape shape_of(const Request& r, int scale) {
  return {r.h >> (scale + 2), r.w >> (scale + 2), r.config.channels << scale};
}
// Of what the stem's first two convolutions make: the first has no padding.
Shape half_shape(const Request& r) { return {(r.h - 3) / 2 + 1, (r.w - 3) / 2 + 1, r.config.stem_width}; }

bool gates_are_computed(const Request& r) { return Activation(r.config.activation) != Activation::kFixed; }

// Are the cells of this scale done by `cell`?
bool is_fused(const Request& r, int scale) {
  if (r.fusion == Fusion::kStaged || r.config.cell_stacks != 2) return false;
  return (r.fusion == Fusion::kFused ? cell_fits : cell_pays)(r.config.channels << scale, r.dtype, r.limits);
}

// What blocks of a row count together: per node, aggregate's tasks and tail's stage items; in all, aggregate's blocks
// and tail's ticket.
int64_t arrivals_of_row(const Request& r) { return 2 * (int64_t(r.n) * kScales + 1); }

// Numbers the buffers and gives each its place.
//   [tables and partial sums, live from `begin` to the end][maps, halves]
//   [ ... the same ...                                     ][stem A (map 0 of scale 0 in its place) ][stem B]
//   [ ... the same ...                                     ][small logits, over maps][halves of scale 0]
// The stem's second map is live until the first map of scale 0 is written, and the decoder's last map, which lies in
// the halves of scale 0, until the small logits are. Everything else of one line is dead when the next one begins.
std::vector<Buffer> lay_out(const Request& r, int64_t& end) {
  std::vector<Buffer> buffers(kBuffers);
  const int64_t rows = r.config.layers + 1, n = r.n, value = r.dtype == DType::kFloat ? 4 : 2;
  end = 0;
  const auto put = [&](int number, std::string name, int64_t bytes, int64_t offset) {
    buffers[size_t(number)] = {std::move(name), bytes, offset};
    end = std::max(end, aligned(offset + bytes));
  };
  const auto append = [&](int number, std::string name, int64_t bytes) { put(number, std::move(name), bytes, end); };

  append(kIo, "io", sizeof(Io));
  buffers[kRows] = {"rows", rows * int64_t(sizeof(Row)), -1};
  append(kNodes, "nodes", rows * n * kScales * int64_t(sizeof(Node)));
  append(kCounts, "counts", rows * kLists * kScales * int64_t(sizeof(int)));
  append(kSamples, "samples", rows * kLists * kScales * n * int64_t(sizeof(int)));
  append(kArrivals, "arrivals", rows * arrivals_of_row(r) * int64_t(sizeof(int)));
  for (int s = 0; s < kScales; ++s) {
    const Shape shape = shape_of(r, s);
    const Level level = {{}, nullptr, shape.h, shape.w, shape.c};
    const int64_t sums = gates_are_computed(r) ? aggregate_partials(level, padded(shape.c / 2), r.n, r.dtype) : 0;
    append(kPartials + s, "partials" + std::to_string(s), sums * int64_t(sizeof(float)));
  }

  const int64_t start = end;
  for (int which : {kMap0, kMap1, kHalves})
    for (int s = 0; s < kScales; ++s) {
      if (which == kHalves && s == 0) continue;
      static const char* names[] = {"map0_", "map1_", "halves_"};
      append(map_buffer(s, which), names[which] + std::to_string(s), n * shape_of(r, s).size() * value);
    }
  const int64_t small_logits = n * shape_of(r, 0).h * shape_of(r, 0).w * r.config.num_classes * int64_t(sizeof(float));
  put(kSmallLogits, "small_logits", small_logits, start);
  append(map_buffer(0, kHalves), "halves_0", n * shape_of(r, 0).size() * value);

  const int64_t stem = n * half_shape(r).size() * value;
  put(kStemA, "stem_a", stem, start);
  put(kStemB, "stem_b", stem, start + aligned(std::max(stem, buffers[size_t(map_buffer(0, kMap0))].bytes)));
  return buffers;
}

class Recorder {
 public:
  Recorder(const Request& request, const std::vector<int64_t>& addresses, int64_t weights, const int64_t* table)
      : r_(request), rows_(request.config.layers + 1), addresses_(addresses), weights_(weights), table_(table) {
    for (int s = 0; s < kScales; ++s) {
      const Shape shape = shape_of(r_, s);
      level_[s] = {{map(s, kMap0), map(s, kMap1)}, map(s, kHalves), shape.h, shape.w, shape.c};
    }
  }

  Row row(int row) const {
    return {buffer<Node>(kNodes) + int64_t(row) * r_.n * kScales, buffer<int>(kCounts) + row * kLists * kScales,
            buffer<int>(kSamples) + int64_t(row) * kLists * kScales * r_.n};
  }

  std::vector<Launch> all() {
    begin();
    stem();
    for (int row = 0; row < rows_; ++row) {
      aggregate(row);
      cells(row);
    }
    decoder();
    return std::move(launches_);
  }

 private:
  const Request& r_;
  const int rows_;
  const std::vector<int64_t>& addresses_;
  const int64_t weights_;
  const int64_t* const table_;
  Level level_[kScales];
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

  // channels: the most that it works on, for the error.
  template <class Params>
  void launch(const char* kernel, LaunchShape (*shape_of_launch)(const Params&, DType, const DeviceLimits&),
              const Params& params, int channels) {
    const LaunchShape shape = shape_of_launch(params, r_.dtype, r_.limits);
    if (shape.shared > r_.limits.shared_per_block)
      throw std::runtime_error(std::string("cuda_launches: ") + kernel + " at " + std::to_string(channels) +
                               " channels needs " + std::to_string(shape.shared) +
                               " bytes of shared memory per block, the device has " +
                               std::to_string(r_.limits.shared_per_block));
    const auto* bytes = reinterpret_cast<const unsigned char*>(&params);
    launches_.push_back({kernel, shape, {bytes, bytes + sizeof(Params)}});
  }
  int widest(int row) const { return level_[scales_of_row(row) - 1].c; }
  int* arrivals(int row) const { return buffer<int>(kArrivals) + row * arrivals_of_row(r_); }
  // What all kernels of a row are told.
  template <class Params>
  Params row_params(int row) const {
    Params p = {};
    p.io = io();
    p.row = this->row(row);
    std::copy(level_, level_ + kScales, p.level);
    p.n = r_.n, p.row_index = row, p.rows = rows_;
    return p;
  }

  void begin() {
    BeginParams p = {};
    p.io = buffer<Io>(kIo);
    p.counters = buffer<int>(kArrivals);
    p.counter_count = int(rows_ * arrivals_of_row(r_));
    p.rows_table = buffer<Row>(kRows);
    p.n = r_.n, p.rows = rows_;
    launch("begin", begin_shape, p, 0);
  }

  void stem() {
    const int row = rows_ * kScales, width = r_.config.stem_width, c = r_.config.channels;
    const Shape half = half_shape(r_), out = shape_of(r_, 0);
    void *a = buffer<void>(kStemA), *b = buffer<void>(kStemB);
    StemParams p = {};
    p.io = io();
    p.weight = matrix(row, kStemConv, 27, width);
    p.out = a;
    p.n = r_.n, p.h_in = r_.h, p.w_in = r_.w, p.h_out = half.h, p.w_out = half.w;
    launch("stem_conv", stem_shape, p, width);

    const auto stage = [&](int field, const void* x, const Shape& to, int stride, void* result) {
      SepconvParams q = {};
      q.io = io();
      q.n = r_.n, q.rows = rows_, q.stem = 1;
      SepconvStage& only = q.stage[0];
      only.depthwise = floats(row, field);
      only.pointwise = matrix(row, field + 1, width, to.c);
      only.c_in = width, only.stride = stride;
      only.h_in = half.h, only.w_in = half.w, only.h_out = to.h, only.w_out = to.w;
      only.from = only.to = kPlain;
      only.plain_x = x, only.plain_out = result;
      only.relu = 1;
      launch("sepconv", sepconv_shape, q, width);
    };
    stage(stage_field(kStemStages, 0), a, half, 1, b);
    stage(stage_field(kStemStages, 1), b, {out.h, out.w, c}, 2, map(0, kMap0));
  }

  void aggregate(int row) {
    auto p = row_params<AggregateParams>(row);
    if (row < rows_ - 1) p.next = this->row(row + 1);
    for (int s = 0; s < scales_of_row(row) && gates_are_computed(r_); ++s) {
      const int at = row * kScales + s, c = level_[s].c;
      p.gate[s] = matrix(at, kGateConv, c, c / 2);
      p.fc_weight[s] = floats(at, kGateFc);
      p.fc_bias[s] = floats(at, kGateFc + 1);
      p.partials[s] = buffer<float>(kPartials + s);
    }
    p.node_arrivals = arrivals(row);
    p.row_arrivals = p.node_arrivals + r_.n * kScales;
    p.activation = r_.config.activation;
    p.small_gate = r_.config.small_gate;
    launch("aggregate", aggregate_shape, p, widest(row));
  }

  // Of the cells, and what follows them.
  void cells(int row) {
    const int scales = scales_of_row(row), stacks = r_.config.cell_stacks;
    int fused = 0;
    for (int s = 0; s < scales; ++s) fused += is_fused(r_, s);
    if (fused > 0) cell(row);
    for (int k = 0; k < stacks - 1 && fused < scales; ++k) launch("sepconv", sepconv_shape, stage(row, k), widest(row));
    if (row < rows_ - 1 || fused < scales) tail(row);
  }

  void cell(int row) {
    auto p = row_params<CellParams>(row);
    int channels = 0;
    for (int s = 0; s < scales_of_row(row); ++s) {
      if (!is_fused(r_, s)) continue;
      channels = level_[s].c;
      for (int k = 0; k < 2; ++k) {
        const int at = row * kScales + s, field = stage_field(kCellStages, k);
        p.depthwise[s][k] = floats(at, field);
        p.pointwise[s][k] = matrix(at, field + 1, channels, channels);
      }
    }
    launch("cell", cell_shape, p, channels);
  }

  // Stage k of the cells that are not fused. The last writes `out`; those before alternate between it and the halves,
  // whose sources X has been made of.
  SepconvParams stage(int row, int k) const {
    const int stacks = r_.config.cell_stacks;
    const auto target = [&](int i) { return (stacks - 1 - i) % 2 == 0 ? kOut : kBetween; };
    auto p = row_params<SepconvParams>(row);
    for (int s = 0; s < scales_of_row(row); ++s) {
      if (is_fused(r_, s)) continue;
      const int at = row * kScales + s, field = stage_field(kCellStages, k);
      const Level& level = level_[s];
      SepconvStage& stage = p.stage[s];
      stage.depthwise = floats(at, field);
      stage.pointwise = matrix(at, field + 1, level.c, level.c);
      stage.c_in = level.c, stage.stride = 1;
      stage.h_in = stage.h_out = level.h, stage.w_in = stage.w_out = level.w;
      stage.from = k == 0 ? kX : target(k - 1);
      stage.to = target(k);
      stage.residual = k == stacks - 1;
      stage.relu = 1;
    }
    return p;
  }

  void tail(int row) {
    TailParams p = {};
    p.cells = stage(row, r_.config.cell_stacks - 1);
    for (int s = 0; s < scales_of_row(row); ++s) {
      const int at = row * kScales + s, c = level_[s].c;
      if (path_exists(row, rows_, s, kUp)) p.up[s] = matrix(at, kUpConv, c, c / 2);
      if (path_exists(row, rows_, s, kDown)) p.down[s] = matrix(at, kDownConv, c, 2 * c);
    }
    p.finished = arrivals(row) + r_.n * kScales + 1;
    p.ticket = p.finished + r_.n * kScales;
    launch("tail", tail_shape, p, widest(row));
  }

  // From 1/32 to 1/4; each scale's result takes its halves, which nothing reads any more.
  void decoder() {
    const int first = rows_ * kScales + 1, classes = r_.config.num_classes;
    for (int s = kScales - 1; s >= 0; --s) {
      const int c = level_[s].c;
      MergeParams p = {};
      p.io = io();
      p.row = row(rows_ - 1);
      p.level = level_[s];
      p.scale = s;
      p.coarse = s < kScales - 1 ? map(s + 1, kHalves) : nullptr;
      p.weight = matrix(first + s, 0, c, s == 0 ? c : c / 2);
      p.out = map(s, kHalves);
      p.n = r_.n;
      launch("merge", merge_shape, p, c);
    }
    const Shape shape = shape_of(r_, 0);
    PredictorParams p = {};
    p.io = io();
    p.x = map(0, kHalves);
    p.weight = matrix(first + kScales, 0, 9 * shape.c, classes);
    p.out = buffer<float>(kSmallLogits);
    p.n = r_.n, p.h = shape.h, p.w = shape.w, p.c = shape.c;
    launch("predictor", predictor_shape, p, shape.c);

    UpsampleParams q = {};
    q.io = io();
    q.x = buffer<float>(kSmallLogits);
    q.n = r_.n, q.h = shape.h, q.w = shape.w, q.classes = classes, q.out_h = r_.out_h, q.out_w = r_.out_w;
    launch("upsample", upsample_shape, q, classes);
  }
};

}  // namespace

Plan::Plan(const Request& request) : request_(request) { buffers_ = lay_out(request_, workspace_); }

std::vector<Row> Plan::row_tables(const std::vector<int64_t>& addresses) const {
  const Recorder recorder(request_, addresses, 0, nullptr);
  std::vector<Row> rows;
  for (int row = 0; row <= request_.config.layers; ++row) rows.push_back(recorder.row(row));
  return rows;
}

std::vector<Launch> Plan::launches(const std::vector<int64_t>& addresses, int64_t weights, const int64_t* table) const {
  return Recorder(request_, addresses, weights, table).all();
}

}  // namespace dynroute::cuda
