// init_call: a call's first kernel. Clears what kernels add to, and makes row 0's nodes.
//
// Work: a few KB of stores (n * rows * 208 bytes of tables), spread over all threads of the grid, nothing read.
// Which thread writes what does not matter: no value is written twice.
#include "init_call.h"
#include "primitives.cuh"

namespace dynroute::cuda {

template <class V>
__device__ inline void zero(V* to, int64_t count, int64_t thread, int64_t threads) {
  for (int64_t i = thread; i < count; i += threads) to[i] = 0;
}

template <class T>
__device__ inline void init_call(const InitCallParams& p) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x, threads = int64_t(gridDim.x) * kThreads;
  const int64_t nodes = int64_t(p.n) * p.rows * kScales;
  if (thread == 0) *p.io = p.value;
  zero(p.value.alphas, nodes * kPaths, thread, threads);
  zero(p.value.node_macs, nodes * kNodeParts, thread, threads);
  zero(p.value.sample_macs, int64_t(p.n) * kSampleParts, thread, threads);
  zero(p.counters, p.counter_count, thread, threads);

  const int counts = p.rows * kLists * kScales;
  for (int64_t i = thread; i < counts; i += threads) {
    const bool all = i == kPresent * kScales;  // of row 0, at scale 0
    p.first.counts[i] = all ? p.n : 0;
  }
  for (int64_t i = thread; i < int64_t(p.n) * kScales; i += threads) {
    Node node = {};
    if (i % kScales == 0) node.present = node.aliased = 1, node.source_keep = 1;
    p.first.nodes[i] = node;
  }
  for (int64_t i = thread; i < p.n; i += threads) p.first.samples[i] = int(i);  // [kPresent][0]
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(init_call, InitCallParams, kThreads)
