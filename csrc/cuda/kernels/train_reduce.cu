// train_reduce: sums over the parts that other kernels left of the weights' gradients, in an order that depends on the
// shape alone; taps into their layout.
//
// Work: a thread has four neighbouring values, an item 1024; where parts are many, 128 or 32, and each of the block's 8
// or 32 rows of threads every 8th or 32nd part. Added up in double, as each part is a sum of many products. Memory:
// parts once.
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

struct ReduceItem {
  TrainReduction of;
  int number;
  bool is;  // there are more
};

// taps: from is [9][c] and out [c][9].
__device__ inline void store_sum(const TrainReduction& of, int i, double sum) {
  const int c = of.taps;  // channels
  of.out[c ? i % c * 9 + i / c : i] = float(sum);
}

__device__ inline void reduce(const ReduceItem& item, int n, double* shared /* [rows][kReduceGroup * across] */) {
  const TrainReduction& of = item.of;
  const int across = reduce_across(of, n), rows = kTrainThreads / across, row = threadIdx.x / across;
  const int wide = kReduceGroup * across, first = item.number * wide, own = kReduceGroup * (threadIdx.x % across);
  const int parts = of.all ? of.parts : of.parts * samples_of(of.samples, n);
  const bool is = first + own < of.size;
  double sum[kReduceGroup] = {};
  if (is) {
#pragma unroll 8
    for (int part = row; part < parts; part += rows) {
      float values[kReduceGroup];
      load_floats(of.from + int64_t(part) * of.stride + first + own, values);
#pragma unroll
      for (int i = 0; i < kReduceGroup; ++i) sum[i] += double(values[i]);
    }
  }
  if (rows == 1) {
    if (!is) return;
#pragma unroll
    for (int i = 0; i < kReduceGroup; ++i) store_sum(of, first + own + i, sum[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kReduceGroup; ++i) shared[row * wide + own + i] = sum[i];
  __syncthreads();
  const int value = first + threadIdx.x;
  if (threadIdx.x >= wide || value >= of.size) return;
  double total = 0;
#pragma unroll 8
  for (int k = 0; k < rows; ++k) total += shared[k * wide + threadIdx.x];
  store_sum(of, value, total);
}

template <class T>
__device__ inline void train_reduce(const TrainReduceParams& p) {
  __shared__ double shared[kReduceGroup * kTrainThreads];
  __shared__ ReduceItem item;
  for (int64_t number = blockIdx.x;; number += gridDim.x) {
    if (threadIdx.x == 0) {
      int64_t at = number;
      item.is = false;
#pragma unroll
      for (const TrainReduction& one : p.list) {
        const int items = one.from ? reduce_items(one, p.n) : 0;
        if (at >= 0 && at < items) item.of = one, item.number = int(at), item.is = true;
        at -= items;
      }
    }
    __syncthreads();  // the item is known
    if (!item.is) return;
    reduce(item, p.n, shared);
    __syncthreads();  // and what it had in memory has been read
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_reduce, TrainReduceParams, kTrainThreads)
