// The table of kernels of one instruction set, and how the running machine's is chosen.
#pragma once
#include <string>

#include "aggregate_backward.h"
#include "jobs.h"
#include "loss_jobs.h"
#include "train_gate.h"
#include "train_jobs.h"
#include "train_node_jobs.h"

namespace dynroute {

// Of training, in float and double.
template <class T>
struct TrainKernels {
  void (*forward)(const TrainForwardJob<T>& job, int task);
  void (*apply)(const TrainApplyJob<T>& job, int task);
  void (*sums)(const TrainSumsJob<T>& job, int task);
  void (*product)(const TrainProductJob<T>& job, int task);
  void (*outer)(const TrainOuterJob<T>& job, int task);
  void (*depthwise)(const TrainDepthwiseJob<T>& job, int task);
  void (*paths)(const TrainPathsJob<T>& job, int task);
  void (*paths_backward)(const TrainPathsBackwardJob<T>& job, int task);
  void (*aggregate)(const AggregateBackwardJob<T>& job, int task);
  void (*gate_quarter)(const GateQuarterJob<T>& job, int task);
  void (*gate_pool)(const GatePoolJob<T>& job, int task);
  void (*gate_product)(const GateProductJob<T>& job, int task);
};

// A kernel runs one task of a job, on any thread.
template <class T>
struct Kernels {
  void (*sepconv)(const SepconvJob<T>& job, int band);
  void (*transform)(const TransformJob<T>& job, int tile);
  void (*aggregate)(const AggregateJob<T>& job, int band);
  void (*gate)(const GateJob<T>& job, int band);
  void (*upsample)(const UpsampleJob<T>& job, int band);
  // No kernels: the arithmetic peaks of vectors and of tiles (null: there are none); they return the operations done.
  double (*fma_loop)(int64_t iterations);
  double (*tile_loop)(int64_t iterations);
  TrainKernels<Compute<T>> train;
  void (*upsampled_loss)(const UpsampledLossJob<Compute<T>>& job, int task);
};

// The table for float is the best the machine has, or what DYNROUTE_CPU_ISA names; double is always portable.
// Throws std::runtime_error if DYNROUTE_CPU_ISA names something unknown, not compiled in, or not supported.
template <class T>
const Kernels<T>& kernels();

// The same, but of the best instruction set whose weights are in panels where the chosen one's are in tiles.
template <class T>
const Kernels<T>& kernels_without_tiles();

// The table of a named instruction set. Throws std::runtime_error, beginning with `what`, if it does not run here.
const Kernels<float>& kernels_of(const std::string& isa, const std::string& what);

std::string chosen_isa();             // e.g. "avx2"
bool weights_in_tiles(int k, int n);  // whether its kernels want a pointwise product's weights so
std::string why_chosen_isa();         // one line
std::string compiled_isas();          // JSON list

}  // namespace dynroute
