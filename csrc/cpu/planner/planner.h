// How a sepconv is cut into tasks and tiles. A plan is a matter of speed alone: every output is one chain of fma in one
// order whatever the plan, so it may depend on the open samples and on the threads.
#pragma once
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "api.h"
#include "cpu/kernels/jobs.h"
#include "machine.h"

namespace dynroute {

struct SepconvShape {
  int stages, c_in, c_out, h_out, w_out, stride;
};

struct SepconvPlan {
  bool fused;  // all stages in one pass; else one at a time, with whole maps between
  Tiling tiling;
  double nanoseconds;  // the cost model's estimate of the elapsed time of all samples
};

// What a measurement found best for a shape; a field of 0 is left to the model.
struct TunedPlan {
  int fused;  // -1: left to the model
  int band_rows, step_rows, strip, tile_pixels;
};

// How many samples of images [h, w] go through the network together: one, whose maps are still in the caches when the
// next layer reads them, or as many as it takes to give every thread something to do on the coarsest maps.
int samples_together(int n, int h, int w, int threads);

// Whether one stage at a time is considered for the cells of a scale: where maps are large it would not pay, and what
// is stored in fewer bits than it is computed with stays in rings of rows between stages.
constexpr bool may_be_staged(int stages, int scale, bool stored_as_computed = true) {
  return stages > 1 && scale >= 2 && stored_as_computed;
}

class DYNROUTE_API Planner {
 public:
  explicit Planner(std::string isa);

  // The fastest by the model; `staged`: whether one stage at a time is to be considered.
  SepconvPlan sepconv(const SepconvShape& shape, bool staged, int samples, int threads);
  // Takes effect for plans made from now on.
  void tune(const SepconvShape& shape, const TunedPlan& tuned);
  void forget_tuning();

  const Machine& machine() const { return machine_; }
  const std::string& isa() const { return isa_; }

 private:
  using Key = std::tuple<int, int, int, int, int, int>;
  static Key key(const SepconvShape& s) { return {s.stages, s.c_in, s.c_out, s.h_out, s.w_out, s.stride}; }

  SepconvPlan best(const SepconvShape& shape, bool staged, int samples, int threads) const;
  double estimate(const SepconvShape& shape, bool fused, const Tiling& tiling, int samples, int threads) const;

  const std::string isa_;
  const Machine machine_;
  std::mutex mutex_;
  std::map<Key, TunedPlan> tuned_;
  std::map<std::tuple<Key, bool, int, int>, SepconvPlan> plans_;
};

// The planner of this process, for the instruction set that its kernels use.
DYNROUTE_API Planner& planner();

}  // namespace dynroute
