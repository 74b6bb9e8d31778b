// train_reduce: sums over the parts that other kernels left of the weights' gradients, in an order that depends on the
// shape alone; taps into their layout.
//
// Work: an item is neighbouring values, 256 of them, a thread's each; where parts are many, 32, and each of a block's 8
// warps has every 8th part. Added up in double, as each part is a sum of many products.
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

struct ReduceItem {
  TrainReduction of;
  int number;
  bool is;  // there are more
};

__device__ inline void reduce(const ReduceItem& item, int n, double* shared) {
  const TrainReduction& of = item.of;
  const int across = reduce_across(of, n), rows = kTrainThreads / across, row = threadIdx.x / across;
  const int i = item.number * across + threadIdx.x % across;
  const int parts = of.all ? of.parts : of.parts * samples_of(of.samples, n);
  double sum = 0;
  if (i < of.size) {
    const float* from = of.from + i;
    __builtin_assume(__isGlobal(from));
#pragma unroll 8
    for (int part = row; part < parts; part += rows) sum += double(from[int64_t(part) * of.stride]);
  }
  if (rows > 1) {
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (row > 0) return;
    sum = 0;
#pragma unroll 8
    for (int k = 0; k < rows; ++k) sum += shared[k * across + threadIdx.x];
  }
  const int c = of.taps;  // channels
  if (i < of.size) of.out[c ? i % c * 9 + i / c : i] = float(sum);
}

template <class T>
__device__ inline void train_reduce(const TrainReduceParams& p) {
  __shared__ double shared[kTrainThreads];
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
