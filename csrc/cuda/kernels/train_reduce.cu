// train_reduce: sums over the parts that other kernels left of the weights' gradients, in order; taps into their
// layout.
//
// Work: a value to each thread, read from part after part, neighbouring threads neighbouring values; added
// up in double, as each part is a sum of many products.
#include "train_shapes.h"
#include "train_source.cuh"

namespace dynroute::cuda {

__device__ inline void reduce(const TrainReduction& of, int n, int i) {
  const int parts = of.all ? of.parts : of.parts * samples_of(of.samples, n);
  const float* from = of.from + i;
  double sum = 0;
#pragma unroll 4
  for (int part = 0; part < parts; ++part, from += of.stride) sum += double(*from);
  const int c = of.taps;  // channels
  of.out[c ? i % c * 9 + i / c : i] = float(sum);
}

template <class T>
__device__ inline void train_reduce(const TrainReduceParams& p) {
  for (int64_t number = int64_t(blockIdx.x) * kTrainThreads + threadIdx.x;;
       number += int64_t(gridDim.x) * kTrainThreads) {
    int64_t at = number;
    bool is = false;
#pragma unroll
    for (const TrainReduction& one : p.list) {
      if (is || !one.from) continue;
      is = at < one.size;
      if (is) reduce(one, p.n, int(at));
      at -= one.size;
    }
    if (!is) return;
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_reduce, TrainReduceParams, kTrainThreads)
