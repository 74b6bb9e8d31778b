// The engine: decides, layer by layer and sample by sample, what is open, and hands the kernels task lists in which the
// four scales and all samples of a layer lie together. Nothing is copied for what is closed. Where one sample keeps all
// threads busy, those of a batch go through the network one after the other (samples_together).
//
// The consumer pulls: gate and cell make X row by row from its sources, and X itself is never stored, unless its node
// is closed (X is then the next keep source) or the cell runs one stage at a time. Memory of one (scale, sample): two
// maps and one pair of halves. The keep source of a layer lies in one map and H goes to the other; where keep alone
// passes with weight 1, X *is* the keep source where it lies. The halves hold the paths up and down (half a map each):
// they are read while X is pulled or stored, then may hold what lies between the stages of a cell that runs one stage
// at a time, and are written last. As every reader of a cell's output H wants ReLU(H), the cell writes that.
#include "engine.h"

#include <algorithm>
#include <utility>

#include "call_data.h"
#include "contract/routing.h"
#include "cpu/kernels/gate_epilogue.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/memory.h"

namespace dynroute {
namespace {

static_assert(kMaxStages >= kMaxCellStacks, "a cell is one job");

// What a node leaves to the next layer, for one sample.
template <class S>
struct NodeState {
  bool present = false;
  Route<float> route = {};
  int held = 0;             // which map the keep source lies in, and X where it is stored
  bool stored = false;      // X lies in the map `held`
  Sources<S> sources = {};  // else it is pulled from these
};

template <class S>
class Network {
 public:
  Network(const NetworkConfig& config, const NetworkArgs& args, const SampleMaps& maps, const Parallel& parallel,
          bool may_skip)
      : config_(config),
        args_(args),
        call_(config, args, maps),
        kernels_(kernels<S>()),
        rows_(config.layers + 1),
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
    const guard::Allowed in_the_end(args_.workspace, call_.workspace_bytes());
    call_.forbid_gaps();
    stem();
    for (int row = 0; row < rows_; ++row) {
      if (row > 0) wire(row);
      gate(row);
      cells(row);
    }
    decoder();
  }

 private:
  const NetworkConfig& config_;
  const NetworkArgs& args_;
  const CallData<S> call_;
  const Kernels<S>& kernels_;
  const int rows_, threads_;
  Runner runner_;
  std::vector<NodeState<S>>& nodes_;   // [n][kScales]: of this layer,
  std::vector<NodeState<S>>& before_;  // and of the one before
  std::vector<TaskList>& lists_;
  TaskList& list_;

  // The calling thread's tables and lists, kept from call to call: filling them again allocates nothing.
  struct Kept {
    std::vector<NodeState<S>> nodes, before;
    std::vector<TaskList> lists;
    TaskList list;
  };
  static Kept& kept() {
    thread_local Kept of_thread;
    return of_thread;
  }
  NodeState<S>& node(int i, int s) { return nodes_[size_t(i) * kScales + s]; }

  void stem() {
    const int table_row = stem_row(config_.layers);
    const MapShape image = {args_.h, args_.w, config_.in_channels}, between = stem_shape(config_, args_.h, args_.w);
    for (int i = 0; i < args_.n; ++i) {
      SepconvJob<S> job = {};
      job.stages = 3;
      job.stage[0] = call_.convolution(table_row, kStemConv, image, between, 2, 0, true);
      job.stage[1] = call_.stage(table_row, stage_field(kStemStages, 0), between, between, 1);
      job.stage[2] = call_.stage(table_row, stage_field(kStemStages, 1), between, call_.shape(0), 2);
      job.image = args_.images + i * image.size();
      job.out = call_.map(i, 0, 0);
      job.tiling = cuts::convolution_tiling(cuts::kStemRows);
      job.macs = call_.sample_macs(i, kStemPart);
      job.halo = call_.sample_macs(i, kHaloPart);
      list_.add(kernels_.sepconv, job, cuts::sepconv_tasks(job), {WorkKind::kStem});
      node(i, 0).present = node(i, 0).stored = true;
    }
    runner_.run(list_);
  }

  // Which nodes are present, and where their X comes from.
  void wire(int row) {
    std::swap(nodes_, before_);
    for (int i = 0; i < args_.n; ++i)
      for (int s = 0; s < kScales; ++s) {
        NodeState<S>& now = node(i, s);
        now = NodeState<S>{};
        if (s >= scales_of_row(row)) continue;
        const NodeState<S>* before = &before_[size_t(i) * kScales];
        bool arrives[kPaths];
        float weight[kPaths];
        for (int path = 0; path < kPaths; ++path) {
          const int from = source_scale(s, path);
          const bool exists = from >= 0 && from < scales_of_row(row - 1) && path_exists(row - 1, rows_, from, path);
          arrives[path] = exists && hands_on(path, exists, before[from].present, before[from].route.closed);
          weight[path] = arrives[path] ? before[from].route.weight[path] : 0;
        }
        const Inputs<float> inputs = inputs_of(arrives, weight);
        now.present = inputs.present;
        if (!now.present) continue;
        now.held = before[s].held;
        now.stored = inputs.aliased;
        Sources<S>& x = now.sources;
        x.down_weight = inputs.weight[kDown];
        x.keep_weight = inputs.weight[kKeep];
        x.up_weight = inputs.weight[kUp];
        if (x.down_weight != 0) x.down = call_.down_half(i, source_scale(s, kDown));
        if (x.keep_weight != 0) x.keep = call_.map(i, s, now.held);
        if (x.up_weight != 0) x.up = call_.up_half(i, source_scale(s, kUp));
      }
  }

  // Stores X beside its keep source.
  void store(int i, int s, TaskList& list) {
    NodeState<S>& now = node(i, s);
    const MapShape& shape = call_.shape(s);
    now.held = 1 - now.held;
    now.stored = true;
    const AggregateJob<S> job = {now.sources, call_.map(i, s, now.held), shape.h, shape.w, shape.c};
    list.add(kernels_.aggregate, job, cuts::aggregate_tasks(job), {WorkKind::kAggregate, uint8_t(s)});
  }

  // Alphas, and from them each node's route.
  void gate(int row) {
    const bool computed = !args_.gates && Activation(config_.activation) != Activation::kFixed;
    if (computed) {
      for (int i = 0; i < args_.n; ++i)
        for (int s = 0; s < scales_of_row(row); ++s)
          if (node(i, s).present) add_gate(i, row, s);
      runner_.run(list_);
    }
    for (int i = 0; i < args_.n; ++i)
      for (int s = 0; s < scales_of_row(row); ++s) {
        NodeState<S>& now = node(i, s);
        if (!now.present) continue;
        float* alpha = call_.alphas(i, row, s);
        if (computed) compute_alphas(i, row, s, alpha);
        for (int path = 0; path < kPaths; ++path) {
          if (!path_exists(row, rows_, s, path)) continue;
          if (args_.gates) alpha[path] = call_.forced(i, row, s)[path];
          else if (!computed) alpha[path] = 1;
        }
        now.route = route_of(alpha);
      }
  }

  void add_gate(int i, int row, int s) {
    const MapShape& shape = call_.shape(s);
    const NodeState<S>& now = node(i, s);
    GateJob<S> job = {};
    job.x = now.stored ? call_.map(i, s, now.held) : nullptr;
    job.sources = now.sources;
    job.pointwise = call_.pointwise(node_row(row, s), kGateConv, shape.c, gate_channels(shape.c));
    job.h = shape.h, job.w = shape.w;
    job.small = config_.small_gate != 0;
    job.partials = call_.partials(i, s);
    job.macs = call_.node_macs(i, row, s, kGatePart);
    list_.add(kernels_.gate, job, cuts::gate_tasks(job.h, job.w, job.small), {WorkKind::kGate, uint8_t(s)});
  }

  void compute_alphas(int i, int row, int s, float* alpha /* [kPaths] */) const {
    int paths[kPaths], gates = 0;
    for (int path : kPublishedOrder)
      if (path_exists(row, rows_, s, path)) paths[gates++] = path;
    const MapShape& shape = call_.shape(s);
    const bool small = config_.small_gate;
    const int channels = gate_channels(shape.c), table_row = node_row(row, s);
    float values[kPaths];
    finish_gate(call_.partials(i, s), cuts::gate_tasks(shape.h, shape.w, small), int(round_up(channels, kPanel)),
                channels, int64_t(gate_side(shape.h, small)) * gate_side(shape.w, small),
                call_.weight(table_row, kGateFc), call_.weight(table_row, kGateFc + 1), gates,
                Activation(config_.activation), values);
    for (int g = 0; g < gates; ++g) alpha[paths[g]] = values[g];
    *call_.node_macs(i, row, s, kGatePart) += int64_t(channels) * gates;
  }

  // Cells and outgoing paths of open nodes, X of closed ones. Everything that reads this layer's sources is in the
  // first list; the paths, which write over them, follow their cells in later ones.
  void cells(int row) {
    int open[kScales] = {};
    for (int i = 0; i < args_.n; ++i)
      for (int s = 0; s < scales_of_row(row); ++s) open[s] += node(i, s).present && !node(i, s).route.closed;
    for (int s = 0; s < scales_of_row(row); ++s)
      for (int i = 0; i < args_.n; ++i) {
        const NodeState<S>& now = node(i, s);
        if (!now.present) continue;
        if (!now.route.closed) paths(i, row, s, lists_[size_t(cell(i, row, s, open[s]))]);
        else if (!now.stored) store(i, s, lists_[0]);
      }
    for (TaskList& list : lists_) runner_.run(list);
  }

  // Returns the list after which the output is whole.
  int cell(int i, int row, int s, int open) {
    const MapShape& shape = call_.shape(s);
    const int stacks = config_.cell_stacks;
    const Tag tag = {WorkKind::kCell, uint8_t(s)};
    NodeState<S>& now = node(i, s);
    const SepconvPlan plan = planner().sepconv({stacks, shape.c, shape.c, shape.h, shape.w, 1},
                                               may_be_staged(stacks, s, std::is_same_v<S, Compute<S>>), open, threads_);
    if (!plan.fused && !now.stored) store(i, s, lists_[0]);
    SepconvJob<S> job = {};
    job.tiling = plan.tiling;
    job.macs = call_.node_macs(i, row, s, kCellPart);
    job.halo = call_.sample_macs(i, kHaloPart);
    const S* x = now.stored ? call_.map(i, s, now.held) : nullptr;
    const auto stage = [&](int k) {
      return call_.stage(node_row(row, s), stage_field(kCellStages, k), shape, shape, 1);
    };
    now.held = 1 - now.held;
    S* out = call_.map(i, s, now.held);
    if (plan.fused) {
      job.stages = stacks;
      for (int k = 0; k < stacks; ++k) job.stage[k] = stage(k);
      job.x = x;
      job.sources = now.sources;
      job.residual = true;
      job.out = out;
      lists_[0].add(kernels_.sepconv, job, cuts::sepconv_tasks(job), tag);
      return 1;
    }
    // The last stage writes `out`; those before alternate between it and this scale's halves, which the first list's
    // readers are done with.
    int list = 1;
    S* const between = call_.up_half(i, s);
    job.stages = 1;
    for (int k = 0; k < stacks; ++k) {
      job.stage[0] = stage(k);
      job.x = k == 0 ? x : job.out;
      job.out = (stacks - 1 - k) % 2 == 0 ? out : between;
      job.addend = k == stacks - 1 ? x : nullptr;
      lists_[size_t(list++)].add(kernels_.sepconv, job, cuts::sepconv_tasks(job), tag);
    }
    return list;
  }

  void paths(int i, int row, int s, TaskList& list) {
    const MapShape& shape = call_.shape(s);
    const NodeState<S>& now = node(i, s);
    for (int path : {kUp, kDown}) {
      if (now.route.weight[path] == 0) continue;
      const bool down = path == kDown;
      TransformJob<S> job = {};
      job.x = call_.map(i, s, now.held);
      job.out = down ? call_.down_half(i, s) : call_.up_half(i, s);
      job.pointwise =
          call_.pointwise(node_row(row, s), down ? kDownConv : kUpConv, shape.c, path_channels(shape.c, path));
      job.stride = down ? 2 : 1;
      job.h_in = shape.h, job.w_in = shape.w;
      job.h_out = strided(shape.h, job.stride), job.w_out = strided(shape.w, job.stride);
      job.relu = true;
      job.macs = call_.node_macs(i, row, s, part_of_path(path));
      list.add(kernels_.transform, job, cuts::transform_tasks(job), {WorkKind::kPath, uint8_t(s)});
    }
  }

  // From 1/32 to 1/4, then the predictor and a bilinear x4. Runs in full: absent is zero.
  void decoder() {
    for (int s = kScales - 1; s >= 0; --s) merge(s);
    predictor();
    upsample();
  }

  // f = ReLU(1x1(f_s + up(f)))
  void merge(int s) {
    const bool coarsest = s == kScales - 1;
    const MapShape& shape = call_.shape(s);
    for (int i = 0; i < args_.n; ++i) {
      NodeState<S>& now = node(i, s);
      now.sources = {};
      now.sources.keep_weight = now.present ? now.route.weight[kKeep] : 0;
      now.sources.up_weight = coarsest ? 0 : 1;
      if (now.sources.keep_weight == 1 && now.sources.up_weight == 0) continue;
      now.sources.keep = call_.map(i, s, now.held);
      now.sources.up = coarsest ? nullptr : call_.up_half(i, source_scale(s, kUp));
      store(i, s, list_);
    }
    runner_.run(list_);
    for (int i = 0; i < args_.n; ++i) {
      TransformJob<S> job = {};
      job.x = call_.map(i, s, node(i, s).held);
      job.out = call_.up_half(i, s);
      job.pointwise = call_.pointwise(merge_row(config_.layers, s), kOnlyConv, shape.c, merge_channels(shape.c, s));
      job.h_in = job.h_out = shape.h, job.w_in = job.w_out = shape.w;
      job.stride = 1;
      job.relu = true;
      job.macs = call_.sample_macs(i, kDecoderPart);
      list_.add(kernels_.transform, job, cuts::transform_tasks(job), {WorkKind::kMerge, uint8_t(s)});
    }
    runner_.run(list_);
  }

  void predictor() {
    const MapShape &in = call_.shape(0), out = {in.h, in.w, config_.num_classes};
    for (int i = 0; i < args_.n; ++i) {
      SepconvJob<S> job = {};
      job.stages = 1;
      job.stage[0] = call_.convolution(predictor_row(config_.layers), kOnlyConv, in, out, 1, 1, false);
      job.x = call_.up_half(i, 0);
      job.out = call_.small_logits(i);
      job.tiling = cuts::convolution_tiling(cuts::stage_rows(out.h, out.w));
      job.macs = call_.sample_macs(i, kDecoderPart);
      job.halo = call_.sample_macs(i, kHaloPart);
      list_.add(kernels_.sepconv, job, cuts::sepconv_tasks(job), {WorkKind::kPredictor});
    }
    // beside it, the logits' memory
    char* logits = reinterpret_cast<char*>(args_.logits);
    const size_t bytes = size_t(args_.n) * config_.num_classes * args_.out_h * args_.out_w * sizeof(float);
    list_.add([=](int task) { touch(logits, bytes, task); }, touch_tasks(bytes), {WorkKind::kMemory});
    runner_.run(list_);
  }

  void upsample() {
    const MapShape& shape = call_.shape(0);
    const int64_t size = int64_t(config_.num_classes) * args_.out_h * args_.out_w;
    for (int i = 0; i < args_.n; ++i) {
      UpsampleJob<S> job = {};
      job.x = call_.small_logits(i);
      job.out = args_.logits + i * size;
      job.h = shape.h, job.w = shape.w, job.c = config_.num_classes;
      job.out_h = args_.out_h, job.out_w = args_.out_w;
      list_.add(kernels_.upsample, job, cuts::upsample_tasks(job), {WorkKind::kUpsample});
    }
    runner_.run(list_);
  }
};

}  // namespace

void network_forward(const NetworkConfig& config, const NetworkSizes& sizes, const NetworkArgs& args,
                     const Parallel& parallel) {
  const int rows = config.layers + 1;
  for (int first = 0; first < args.n; first += sizes.together) {
    const int64_t nodes = node_index(first, rows, 0, 0);
    NetworkArgs group = args;
    group.n = std::min(sizes.together, args.n - first);
    group.images += int64_t(first) * config.in_channels * args.h * args.w;
    if (group.gates) group.gates += nodes * kPaths;
    group.logits += int64_t(first) * config.num_classes * args.out_h * args.out_w;
    group.alphas += nodes * kPaths;
    group.node_macs += nodes * kNodeParts;
    group.sample_macs += int64_t(first) * kSampleParts;
    if (config.bf16_storage) Network<bf16>(config, group, sizes.maps, parallel, first == 0).run();
    else Network<float>(config, group, sizes.maps, parallel, first == 0).run();
  }
}

}  // namespace dynroute
