// The engine: decides, layer by layer and sample by sample, what is open, and hands the kernels task lists in which the
// four scales and all samples of a layer lie together. Nothing is copied for what is closed. Where one sample keeps all
// threads busy, those of a batch go through the network one after the other (samples_together).
//
// The consumer pulls: gate and cell make X row by row from its sources, and X itself is never stored, unless its node
// is closed (X is then the next keep source) or the cell runs one stage at a time. Memory of one (scale, sample): two
// maps and one pair of halves. The keep source of a layer lies in one map and H goes to the other; where keep alone
// passes with weight 1, X *is* the keep source where it lies. The halves hold the paths up and down (half a map each):
// they are read while X is pulled or stored, then may hold what lies between the stages of a cell that runs one stage at
// a time, and are written last. As every reader of a cell's output H wants ReLU(H), the cell writes that.
#include "engine.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/planner/planner.h"
#include "cpu/kernels/guard.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/memory.h"
#include "cpu/kernels/tasks_of_jobs.h"
#include "gate_end.h"

namespace dynroute {
namespace {

struct Shape {
  int h, w, c;
  int64_t size() const { return int64_t(h) * w * c; }
};

// What a node leaves to the next layer, for one sample.
template <class S>
struct Node {
  bool present = false, closed = false;
  float weight[kPaths] = {0, 0, 0};  // of each outgoing path; 0: closed or none
  int held = 0;                      // which map the keep source lies in, and X where it is stored
  bool stored = false;               // X lies in the map `held`
  Sources<S> sources = {};           // else it is pulled from these
};

// Where a sample's maps lie, in values of S; the gates' sums are floats and `logits` may be one of the maps.
template <class S>
struct Layout {
  Shape shape[kScales];
  int64_t map[kScales][2], halves[kScales], partials[kScales], logits, total;
  std::vector<std::pair<int64_t, int64_t>> gaps;  // behind each part, if there are sanitizers to watch them

  // May a cell of this scale run one stage at a time? Where maps are large it would not pay.
  // What is stored in fewer bits than it is computed with stays in rings of rows between stages.
  static bool staged(const NetworkConfig& config, int s) {
    return s >= 2 && config.cell_stacks > 1 && std::is_same_v<S, float>;
  }

  Layout(const NetworkConfig& config, int h, int w) {
    total = 0;
    const auto take = [&](int64_t size) {
      const int64_t at = total;
      total += round_up(size, 64 / sizeof(S)) + guard::kFloats;
      if constexpr (guard::kFloats > 0) gaps.push_back({at + size, total});
      return at;
    };
    for (int s = 0; s < kScales; ++s) {
      shape[s] = {h >> (s + 2), w >> (s + 2), config.channels << s};
      for (int64_t& map_ : map[s]) map_ = take(shape[s].size());
      halves[s] = take(shape[s].size());
      partials[s] = take(plan::gate_tasks(shape[s].h, shape[s].w, config.small_gate) *
                         round_up(shape[s].c / 2, kPanel) * int64_t(sizeof(float) / sizeof(S)));
    }
    // the small logits take a free map of scale 1/4 unless there are more classes than channels
    logits = config.num_classes <= config.channels ? -1 : take(int64_t(shape[0].h) * shape[0].w * config.num_classes);
  }
};

template <class S>
class Network {
 public:
  Network(const NetworkConfig& config, const NetworkArgs& args, const Parallel& parallel, bool may_skip)
      : config_(config),
        args_(args),
        layout_(config, args.h, args.w),
        kernels_(kernels<S>()),
        threads_(parallel.threads()),
        runner_(parallel, may_skip),
        nodes_(kept().nodes),
        before_(kept().before),
        lists_(kept().lists),
        list_(kept().list) {
    nodes_.assign(size_t(args.n) * kScales, {});
    before_.assign(nodes_.size(), {});
    lists_.resize(size_t(config.cell_stacks) + 2);
    for (TaskList& list : lists_) list.clear();  // an error may have left some of the last call's tasks
    list_.clear();
  }

  void run() {
    const guard::Allowed in_the_end(args_.workspace, size_t(args_.n * layout_.total) * sizeof(S));
    for (int i = 0; i < args_.n; ++i)
      for (const auto& [begin, end] : layout_.gaps) guard::forbid(at(i, begin), size_t(end - begin) * sizeof(S));
    stem();
    for (int row = 0; row <= config_.layers; ++row) {
      if (row > 0) wire(row);
      gate(row);
      cells(row);
    }
    decoder();
  }

 private:
  const NetworkConfig& config_;
  const NetworkArgs& args_;
  const Layout<S> layout_;
  const Kernels<S>& kernels_;
  const int threads_;
  Runner runner_;
  std::vector<Node<S>>& nodes_;   // [n][4]: of this layer,
  std::vector<Node<S>>& before_;  // and of the one before
  std::vector<TaskList>& lists_;
  TaskList& list_;

  // The calling thread's tables and lists, kept from call to call: filling them again allocates nothing.
  struct Kept {
    std::vector<Node<S>> nodes, before;
    std::vector<TaskList> lists;
    TaskList list;
  };
  static Kept& kept() {
    thread_local Kept of_thread;
    return of_thread;
  }

  // row 0 is the init cell; row l + 1 is layer l
  int scales(int row) const { return row == 0 ? 1 : std::min(row + 1, kScales); }
  bool has_path(int row, int s, int path) const {
    if (path == kKeep) return true;
    if (row == config_.layers) return false;
    return path == kUp ? s > 0 : s < kScales - 1;
  }
  Node<S>& node(int i, int s) { return nodes_[size_t(i) * kScales + s]; }

  S* at(int i, int64_t offset) const { return reinterpret_cast<S*>(args_.workspace) + i * layout_.total + offset; }
  float* partials(int i, int s) const { return reinterpret_cast<float*>(at(i, layout_.partials[s])); }
  S* map(int i, int s, int which) const { return at(i, layout_.map[s][which]); }
  S* up_half(int i, int s) const { return at(i, layout_.halves[s]); }
  S* down_half(int i, int s) const { return at(i, layout_.halves[s] + layout_.shape[s].size() / 2); }

  const float* weight(int table_row, int field) const {
    const int64_t offset = args_.table[int64_t(table_row) * kTableFields + field];
    return offset < 0 ? nullptr : args_.weights + offset;
  }
  Pointwise<S> pointwise(int table_row, int field, int k, int n) const {
    return {reinterpret_cast<const S*>(weight(table_row, field)), weight(table_row, field + 1), k, n};
  }
  int64_t row_index(int i, int row, int s) const { return (int64_t(i) * (config_.layers + 1) + row) * kScales + s; }
  float* alphas(int i, int row, int s) const { return args_.alphas + row_index(i, row, s) * kPaths; }
  int64_t* macs(int i, int row, int s, int what) const { return args_.nodes + row_index(i, row, s) * kNodeParts + what; }
  int64_t* other(int i, int what) const { return args_.other + int64_t(i) * 3 + what; }

  void stem() {
    const int row = (config_.layers + 1) * kScales, width = config_.stem_width, c = config_.channels;
    const int h = args_.h, w = args_.w, h2 = (h - 3) / 2 + 1, w2 = (w - 3) / 2 + 1;
    const Shape& out = layout_.shape[0];
    for (int i = 0; i < args_.n; ++i) {
      SepconvJob<S> job = {};
      job.stages = 3;
      job.stage[0] = {nullptr, pointwise(row, kStemConv, 27, width), 3, 2, 0, h, w, h2, w2, true};
      job.stage[1] = {
          weight(row, stage_field(kStemStages, 0)), pointwise(row, stage_field(kStemStages, 0) + 1, width, width), width, 1, 1, h2, w2, h2, w2, true};
      job.stage[2] = {
          weight(row, stage_field(kStemStages, 1)), pointwise(row, stage_field(kStemStages, 1) + 1, width, c), width, 2, 1, h2, w2, out.h, out.w, true};
      job.image = args_.images + int64_t(i) * 3 * h * w;
      job.out = map(i, 0, 0);
      job.tiling = plan::convolution_tiling(plan::kStemRows);
      job.macs = other(i, 0);
      job.halo = other(i, 2);
      list_.add(kernels_.sepconv, job, plan::sepconv_tasks(job), {Work::kStem});
      node(i, 0).present = node(i, 0).stored = true;
    }
    runner_.run(list_);
  }

  // Which nodes are present, and where their X comes from.
  void wire(int row) {
    std::swap(nodes_, before_);
    for (int i = 0; i < args_.n; ++i)
      for (int s = 0; s < kScales; ++s) {
        Node<S>& now = node(i, s);
        now = Node<S>{};
        if (s >= scales(row)) continue;
        const Node<S>* before = &before_[size_t(i) * kScales];
        // a path that was not there, or was of an absent node, has weight 0 and its node is not present
        const auto passes = [&](int from, int path) {
          return from >= 0 && from < scales(row - 1) && has_path(row - 1, from, path) && before[from].present &&
                 !before[from].closed;
        };
        now.present = passes(s - 1, kDown) || before[s].present || passes(s + 1, kUp);
        if (!now.present) continue;
        now.held = before[s].held;
        Sources<S>& x = now.sources;
        x.down_weight = passes(s - 1, kDown) ? before[s - 1].weight[kDown] : 0;
        x.keep_weight = before[s].present ? before[s].weight[kKeep] : 0;
        x.up_weight = passes(s + 1, kUp) ? before[s + 1].weight[kUp] : 0;
        now.stored = x.keep_weight == 1 && x.down_weight == 0 && x.up_weight == 0;
        if (x.down_weight != 0) x.down = down_half(i, s - 1);
        if (x.keep_weight != 0) x.keep = map(i, s, now.held);
        if (x.up_weight != 0) x.up = up_half(i, s + 1);
      }
  }

  // Stores X beside its keep source.
  void store(int i, int s, TaskList& list) {
    Node<S>& now = node(i, s);
    const Shape& shape = layout_.shape[s];
    now.held = 1 - now.held;
    now.stored = true;
    const AggregateJob<S> job = {now.sources, map(i, s, now.held), shape.h, shape.w, shape.c};
    list.add(kernels_.aggregate, job, plan::aggregate_tasks(job), {Work::kAggregate, uint8_t(s)});
  }

  // Alphas, and from them each node's route.
  void gate(int row) {
    const bool computed = !args_.gates && Activation(config_.activation) != Activation::kFixed;
    if (computed) {
      for (int i = 0; i < args_.n; ++i)
        for (int s = 0; s < scales(row); ++s) {
          if (!node(i, s).present) continue;
          const Shape& shape = layout_.shape[s];
          const Node<S>& now = node(i, s);
          GateJob<S> job = {now.stored ? map(i, s, now.held) : nullptr,
                            now.sources,
                            pointwise(row * kScales + s, kGateConv, shape.c, shape.c / 2),
                            shape.h,
                            shape.w,
                            config_.small_gate != 0,
                            partials(i, s),
                            macs(i, row, s, 0)};
          list_.add(kernels_.gate, job, plan::gate_tasks(shape.h, shape.w, config_.small_gate),
                    {Work::kGate, uint8_t(s)});
        }
      runner_.run(list_);
    }
    for (int i = 0; i < args_.n; ++i)
      for (int s = 0; s < scales(row); ++s) {
        Node<S>& now = node(i, s);
        if (!now.present) continue;
        float* alpha = alphas(i, row, s);
        if (computed) compute_alphas(i, row, s, alpha);
        for (int path = 0; path < kPaths; ++path) {
          if (!has_path(row, s, path)) continue;
          if (args_.gates) alpha[path] = args_.gates[row_index(i, row, s) * kPaths + path];
          else if (!computed) alpha[path] = 1;
        }
        now.closed = is_closed(alpha);
        for (int path = 0; path < kPaths; ++path)
          now.weight[path] = !now.closed && path_is_open(alpha[path]) ? alpha[path] : 0;
        if (now.closed) now.weight[kKeep] = 1;  // X itself
      }
  }

  void compute_alphas(int i, int row, int s, float* alpha /* [3] */) const {
    // the published order of a gate's outputs
    static constexpr int order[kPaths] = {kKeep, kUp, kDown};
    int paths[kPaths], gates = 0;
    for (int path : order)
      if (has_path(row, s, path)) paths[gates++] = path;
    const Shape& shape = layout_.shape[s];
    const bool small = config_.small_gate;
    const int channels = shape.c / 2, table_row = row * kScales + s;
    float values[kPaths];
    finish_gate(partials(i, s), plan::gate_tasks(shape.h, shape.w, small), int(round_up(channels, kPanel)), channels,
                int64_t(plan::gate_height(shape.h, small)) * plan::gate_height(shape.w, small),
                weight(table_row, kGateFc), weight(table_row, kGateFc + 1), gates, Activation(config_.activation),
                values);
    for (int g = 0; g < gates; ++g) alpha[paths[g]] = values[g];
    *macs(i, row, s, 0) += int64_t(channels) * gates;
  }

  // Cells and outgoing paths of open nodes, X of closed ones. Everything that reads this layer's sources is in the
  // first list; the paths, which write over them, follow their cells in later ones.
  void cells(int row) {
    int open[kScales] = {};
    for (int i = 0; i < args_.n; ++i)
      for (int s = 0; s < scales(row); ++s) open[s] += node(i, s).present && !node(i, s).closed;
    for (int s = 0; s < scales(row); ++s)
      for (int i = 0; i < args_.n; ++i) {
        const Node<S>& now = node(i, s);
        if (!now.present) continue;
        if (!now.closed) paths(i, row, s, lists_[size_t(cell(i, row, s, open[s]))]);
        else if (!now.stored) store(i, s, lists_[0]);
      }
    for (TaskList& list : lists_) runner_.run(list);
  }

  // Returns the list after which the output is whole.
  int cell(int i, int row, int s, int open) {
    const Shape& shape = layout_.shape[s];
    const int table_row = row * kScales + s, stacks = config_.cell_stacks;
    const Tag tag = {Work::kCell, uint8_t(s)};
    Node<S>& now = node(i, s);
    SepconvPlan plan = planner().sepconv({stacks, shape.c, shape.c, shape.h, shape.w, 1}, Layout<S>::staged(config_, s),
                                         open, threads_);
    if (!plan.fused && !now.stored) store(i, s, lists_[0]);
    SepconvJob<S> job = {};
    job.tiling = plan.tiling;
    job.macs = macs(i, row, s, 1);
    job.halo = other(i, 2);
    const S* x = now.stored ? map(i, s, now.held) : nullptr;
    const auto stage = [&](int k) -> RowStage<S> {
      const int field = stage_field(kCellStages, k);
      return {weight(table_row, field),
              pointwise(table_row, field + 1, shape.c, shape.c),
              shape.c,
              1,
              1,
              shape.h,
              shape.w,
              shape.h,
              shape.w,
              true};
    };
    now.held = 1 - now.held;
    S* out = map(i, s, now.held);
    if (plan.fused) {
      job.stages = stacks;
      for (int k = 0; k < stacks; ++k) job.stage[k] = stage(k);
      job.x = x;
      job.sources = now.sources;
      job.residual = true;
      job.out = out;
      lists_[0].add(kernels_.sepconv, job, plan::sepconv_tasks(job), tag);
      return 1;
    }
    // The last stage writes `out`; those before alternate between it and this scale's halves, which the first list's
    // readers are done with.
    int list = 1;
    S* const between = up_half(i, s);
    job.stages = 1;
    for (int k = 0; k < stacks; ++k) {
      job.stage[0] = stage(k);
      job.x = k == 0 ? x : job.out;
      job.out = (stacks - 1 - k) % 2 == 0 ? out : between;
      job.addend = k == stacks - 1 ? x : nullptr;
      lists_[size_t(list++)].add(kernels_.sepconv, job, plan::sepconv_tasks(job), tag);
    }
    return list;
  }

  void paths(int i, int row, int s, TaskList& list) {
    const Shape& shape = layout_.shape[s];
    const Node<S>& now = node(i, s);
    for (int path : {kUp, kDown}) {
      if (now.weight[path] == 0) continue;
      const bool down = path == kDown;
      TransformJob<S> job = {};
      job.x = map(i, s, now.held);
      job.out = down ? down_half(i, s) : up_half(i, s);
      job.pointwise =
          pointwise(row * kScales + s, down ? kDownConv : kUpConv, shape.c, down ? 2 * shape.c : shape.c / 2);
      job.h_in = shape.h, job.w_in = shape.w;
      job.stride = down ? 2 : 1;
      job.h_out = shape.h / job.stride, job.w_out = shape.w / job.stride;
      job.relu = true;
      job.macs = macs(i, row, s, down ? 4 : 2);
      list.add(kernels_.transform, job, plan::transform_tasks(job), {Work::kPath, uint8_t(s)});
    }
  }

  // From 1/32 to 1/4: f = ReLU(1x1(f_s + up(f))), then the predictor and a bilinear x4. Runs in full: absent is zero.
  void decoder() {
    const int first = (config_.layers + 1) * kScales + 1;
    for (int s = kScales - 1; s >= 0; --s) {
      const Shape& shape = layout_.shape[s];
      for (int i = 0; i < args_.n; ++i) {
        Node<S>& now = node(i, s);
        now.sources = {};
        now.sources.keep_weight = now.present ? now.weight[kKeep] : 0;
        now.sources.up_weight = s < kScales - 1 ? 1 : 0;
        if (now.sources.keep_weight == 1 && now.sources.up_weight == 0) continue;
        now.sources.keep = map(i, s, now.held);
        now.sources.up = s < kScales - 1 ? up_half(i, s + 1) : nullptr;
        store(i, s, list_);
      }
      runner_.run(list_);
      for (int i = 0; i < args_.n; ++i) {
        TransformJob<S> job = {};
        job.x = map(i, s, node(i, s).held);
        job.out = up_half(i, s);
        job.pointwise = pointwise(first + s, 0, shape.c, s == 0 ? shape.c : shape.c / 2);
        job.h_in = job.h_out = shape.h, job.w_in = job.w_out = shape.w;
        job.stride = 1;
        job.relu = true;
        job.macs = other(i, 1);
        list_.add(kernels_.transform, job, plan::transform_tasks(job), {Work::kMerge, uint8_t(s)});
      }
      runner_.run(list_);
    }
    const Shape& shape = layout_.shape[0];
    const auto small_logits = [&](int i) { return layout_.logits < 0 ? map(i, 0, 0) : at(i, layout_.logits); };
    for (int i = 0; i < args_.n; ++i) {
      SepconvJob<S> job = {};
      job.stages = 1;
      job.stage[0] = {nullptr, pointwise(first + kScales, 0, 9 * shape.c, config_.num_classes),
                      shape.c, 1,
                      1,       shape.h,
                      shape.w, shape.h,
                      shape.w, false};
      job.x = up_half(i, 0);
      job.out = small_logits(i);
      job.tiling = plan::convolution_tiling(plan::stage_rows(shape.h, shape.w));
      job.macs = other(i, 1);
      job.halo = other(i, 2);
      list_.add(kernels_.sepconv, job, plan::sepconv_tasks(job), {Work::kPredictor});
    }
    char* logits = reinterpret_cast<char*>(args_.logits);
    const size_t bytes = size_t(args_.n) * config_.num_classes * args_.out_h * args_.out_w * sizeof(float);
    list_.add([=](int task) { touch(logits, bytes, task); }, touch_tasks(bytes), {Work::kMemory});
    runner_.run(list_);
    for (int i = 0; i < args_.n; ++i) {
      UpsampleJob<S> job = {small_logits(i), args_.logits + int64_t(i) * config_.num_classes * args_.out_h * args_.out_w,
                            shape.h,         shape.w,
                            config_.num_classes, args_.out_h,
                            args_.out_w};
      list_.add(kernels_.upsample, job, plan::upsample_tasks(job), {Work::kUpsample});
    }
    runner_.run(list_);
  }
};

}  // namespace

int64_t network_workspace(const NetworkConfig& config, int n, int h, int w, int threads) {
  const int64_t together = samples_together(n, h, w, threads);
  if (!config.bf16_storage) return Layout<float>(config, h, w).total * together;
  return ceil_div(Layout<bf16>(config, h, w).total * together, 2);
}

void network_forward(const NetworkConfig& config, const NetworkArgs& args, const Parallel& parallel) {
  const int together = samples_together(args.n, args.h, args.w, parallel.threads());
  const int64_t rows = (int64_t(config.layers) + 1) * kScales;
  for (int first = 0; first < args.n; first += together) {
    NetworkArgs group = args;
    group.n = std::min(together, args.n - first);
    group.images += int64_t(first) * 3 * args.h * args.w;
    if (group.gates) group.gates += first * rows * kPaths;
    group.logits += int64_t(first) * config.num_classes * args.out_h * args.out_w;
    group.alphas += first * rows * kPaths;
    group.nodes += first * rows * kNodeParts;
    group.other += int64_t(first) * 3;
    if (config.bf16_storage) Network<bf16>(config, group, parallel, first == 0).run();
    else Network<float>(config, group, parallel, first == 0).run();
  }
}

}  // namespace dynroute
