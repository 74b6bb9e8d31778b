// stage_paths: what ends a row: the last stage of the cells that go by stages, and the outgoing paths of all open
// nodes, in one launch. Paths of fused cells, whose H is there, keep the machine busy while the last stages end; paths
// of the others begin node by node.
//
// Work: a list of items, taken in order from a counter in device memory: the stages' tiles (sepconv_item.cuh), coarse
// scales first; then the paths' (path_item.cuh), first of nodes whose H is there already. A block takes its next item
// while the data of the one before are on their way; whoever is done first does the next, so that all end together.
// Waiting: each finished stage item is counted for its node, after its stores, and a path item first waits for all
// items of its node's stage. Items are taken in order, and a block takes its first path item only when there are no
// more stage items to take: so whoever waits, waits for items that other blocks, which run, have taken and do without
// waiting themselves. That ends however many blocks are resident: one does it all alone, and none needs to be started.
// The halves, where a stage may read what the one before has left, are written by the node's paths only after that.
// H is read past L1 (cp.async.cg; arrival.cuh says why that is enough).
// Machine: 256 threads, at most 128 registers, two blocks to a multiprocessor; the shared memory is the larger of both
// kinds' (16-bit: 89 KB with 512 channels: two blocks on H100, one on A100).
#include "arrival.cuh"
#include "path_item.cuh"
#include "sepconv_item.cuh"

namespace dynroute::cuda {

// By the first threads.
template <class T>
__device__ inline void list_items(const StagePathsParams& p, PathList& list) {
  if (threadIdx.x >= 2 * kScales) return;
  const int s = threadIdx.x % kScales, down = threadIdx.x / kScales;
  const int* counts = p.cells.row.counts;
  const int of_sample = p.cuts[down][s].of_sample;
  list.all[down][s] = of_sample == 0 ? 0 : of_sample * counts[(down ? kDownOpen : kUpOpen) * kScales + s];
  if (down) return;
  const SepconvStage& stage = p.cells.stage[s];
  const int listed = stage.depthwise ? counts[kOpen * kScales + s] : 0;
  list.waits[s] = listed == 0 ? 0 : sepconv_items(stage, listed, sizeof(T), p.cells.enough);
  list.stages[s] = listed * list.waits[s];
}

template <class T>
__device__ inline void stage_paths(const StagePathsParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ PathList list;
  __shared__ SepconvItem stages[2];  // of either kind, this item and the next
  __shared__ PathItem paths[2];
  static_assert(sizeof(list) + sizeof(stages) + sizeof(paths) <= kStagePathsStatic, "the host knows of it");
  const auto take_path = [&](int ticket, PathItem& item) {
    for (int s = 0; s < kScales; ++s) ticket -= list.stages[s];
    find_path_item<T>(p, list, ticket, item);
  };
  const auto take = [&](int turn, int last_scale) {
    const int ticket = atomicAdd(p.ticket, 1);
    find_item<T>(p.cells, ticket, last_scale, stages[turn]);
    if (stages[turn].number < 0) take_path(ticket, paths[turn]);
  };
  list_items<T>(p, list);
  __syncthreads();
  if (threadIdx.x == 0) take(0, -1);
  __syncthreads();

  int turn = 0;
  for (; stages[turn].number >= 0; turn ^= 1) {
    const SepconvItem& item = stages[turn];
    sepconv_item<T, 1>(p.cells, item, memory, [&] { take(turn ^ 1, item.scale); });
    __syncthreads();  // all have stored their results, read the memory for the last time, and know the next item
    if (threadIdx.x == 0) arrive(p.finished + item.sample * kScales + item.scale);
  }
  for (; paths[turn].found; turn ^= 1) {
    const PathItem& item = paths[turn];
    if (item.waits > 0) {
      if (threadIdx.x == 0) wait_for(p.finished + item.node, item.waits);
      __syncthreads();
    }
    const Matrix& w = item.down ? p.down[item.scale] : p.up[item.scale];
    const auto ahead = [&] { take_path(atomicAdd(p.ticket, 1), paths[turn ^ 1]); };
    if (path_tile(w, kIsFloat<T>).width == 128) path_item<PathTile<T, 128>>(p, item, w, memory, ahead);
    else path_item<PathTile<T, 64>>(p, item, w, memory, ahead);
    __syncthreads();
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(stage_paths, StagePathsParams, kSepconvThreads, kStagePathsResident)
