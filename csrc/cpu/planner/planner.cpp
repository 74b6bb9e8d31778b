#include "planner.h"

#include <algorithm>
#include <cmath>

#include "cpu/kernels/kernels.h"

namespace dynroute {
namespace {

constexpr int kMaxL1Channels = 128;  // weights of no more channels are small enough for L1
constexpr int kL1TilePixels = 48;    // pixels per panel there,
constexpr int kL2TilePixels = 96;    // and where weights come from L2
constexpr int kMinStepPixels = 256;  // of a step, for one pass over weights that fill much of L2
constexpr int kStripColumns = 16;    // two blocks of the depthwise, whole blocks of the pointwise product
constexpr double kTaskNanoseconds = 2000, kBarrierNanoseconds = 6000;
// Bands of unequal number leave threads waiting, unless other scales and samples fill in: both happen.
constexpr double kAlone = 0.5;

int64_t weight_bytes(int c_in, int c_out) { return int64_t(c_in) * c_out * 4; }

double stage_flops(int c_in, int c_out, double pixels) { return 2 * pixels * c_in * (9.0 + c_out); }

}  // namespace

Planner& planner() {
  static Planner of_process(chosen_isa());
  return of_process;
}

Planner::Planner(std::string isa) : isa_(std::move(isa)), machine_(read_machine(isa_.c_str())) {}

void Planner::tune(const SepconvShape& shape, const TunedPlan& tuned) {
  const std::lock_guard<std::mutex> lock(mutex_);
  tuned_[key(shape)] = tuned;
  plans_.clear();
}

void Planner::forget_tuning() {
  const std::lock_guard<std::mutex> lock(mutex_);
  tuned_.clear();
  plans_.clear();
}

SepconvPlan Planner::sepconv(const SepconvShape& shape, bool staged, int samples, int threads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto [found, is_new] = plans_.try_emplace({key(shape), staged, samples, threads});
  if (is_new) found->second = best(shape, staged, samples, threads);
  return found->second;
}

SepconvPlan Planner::best(const SepconvShape& shape, bool staged, int samples, int threads) const {
  TunedPlan tuned = {-1, 0, 0, 0, 0};
  if (const auto found = tuned_.find(key(shape)); found != tuned_.end()) tuned = found->second;

  const int64_t widest = std::max(shape.c_in, shape.c_out), row = shape.w_out * widest * 4;
  const bool weights_in_l1 = widest <= kMaxL1Channels;
  Tiling tiling = {};
  // three rows of a strip, its panel and the panels of 64 output channels side by side in L1
  const bool strips = 3 * (kStripColumns + 2) * widest * 4 <= machine_.l1_bytes / 2;
  tiling.strip = tuned.strip > 0 ? tuned.strip : strips ? kStripColumns : shape.w_out;
  tiling.tile_pixels = tuned.tile_pixels > 0 ? tuned.tile_pixels : weights_in_l1 ? kL1TilePixels : kL2TilePixels;

  SepconvPlan chosen = {};
  chosen.nanoseconds = HUGE_VAL;
  for (const bool fused : {true, false}) {
    if (!fused && (shape.stages == 1 || !staged)) continue;
    if (shape.stages > 1 && staged && tuned.fused >= 0 && fused != (tuned.fused != 0)) continue;
    for (int bands = 1; bands <= shape.h_out; bands = bands < 8 ? bands + 1 : bands + bands / 4) {
      Tiling candidate = tiling;
      candidate.band_rows = tuned.band_rows > 0 ? tuned.band_rows : int(ceil_div(shape.h_out, bands));
      // rows made at a time: rows of input, ring and output together in half of L2, and weights read for many pixels
      const int64_t fits = machine_.l2_bytes / 2 / (row * (fused ? 3 : 2)) - 3;
      candidate.step_rows = tuned.step_rows > 0 ? tuned.step_rows : int(std::clamp<int64_t>(fits, 1, 8));
      const int min_pixels = weights_in_l1 ? kL1TilePixels : kMinStepPixels;
      candidate.step_rows = std::max(candidate.step_rows, int(ceil_div(min_pixels, shape.w_out)));
      candidate.step_rows = std::min(candidate.step_rows, candidate.band_rows);
      const double estimated = estimate(shape, fused, candidate, samples, threads);
      if (estimated < chosen.nanoseconds) chosen = {fused, candidate, estimated};
    }
  }
  return chosen;
}

double Planner::estimate(const SepconvShape& shape, bool fused, const Tiling& tiling, int samples, int threads) const {
  const double bands = double(ceil_div(shape.h_out, tiling.band_rows)), pixels = double(shape.h_out) * shape.w_out;
  const double halo_rows = fused ? 2.0 * (bands - 1) : 0;  // of every stage but the last, as often as others follow it
  double work = 0, weights = 0, steps = 0;
  int c = shape.c_in;
  for (int s = 0; s < shape.stages; ++s, c = shape.c_out) {
    const double rows = shape.h_out + halo_rows * (shape.stages - 1 - s);
    work += stage_flops(c, shape.c_out, rows * shape.w_out) / machine_.flops;
    weights += double(weight_bytes(c, shape.c_out));
  }
  steps = std::ceil(double(tiling.band_rows) / tiling.step_rows) * bands;

  // weights are read again in every step (fused) or band; from L2 that mostly hides behind the arithmetic, from further
  // not
  const double row = double(shape.w_out) * std::max(shape.c_in, shape.c_out) * 4;
  const double in_use = fused ? weights + row * (3 * tiling.step_rows + 6) : weights / shape.stages;
  const double passes = fused ? steps : bands;
  const bool in_l2 = in_use < 0.8 * double(machine_.l2_bytes);
  work += 0.5 * weights * passes / (in_l2 ? machine_.l2_bytes_per_ns : machine_.memory_bytes_per_ns);
  // maps: the input read, the output fetched and written; one at a time, the same again for each map between
  const double map = pixels * std::max(shape.c_in, shape.c_out) * 4;
  const double maps = fused ? 3 : 3 * shape.stages;
  const bool near = map * 2 < double(machine_.l2_bytes);
  work += map * maps / (near ? machine_.l2_bytes_per_ns : machine_.memory_bytes_per_ns) / (near ? 1 : 2);
  work += kTaskNanoseconds * bands * (fused ? 1 : shape.stages);

  const double shared = samples * work / threads, rounds = std::ceil(samples * bands / threads);
  return (1 - kAlone) * shared + kAlone * rounds * work / bands +
         (fused ? 0 : kBarrierNanoseconds * (shape.stages - 1) * (threads > 1));
}

int samples_together(int n, int h, int w, int threads) {
  constexpr int64_t kPixelsPerThread = 128;  // of a map at 1/32
  const int64_t wanted =
      ceil_div(threads * kPixelsPerThread, std::max<int64_t>(1, int64_t(h / kSideMultiple) * (w / kSideMultiple)));
  const int64_t groups = ceil_div(n, wanted);
  return groups == 0 ? 0 : int(ceil_div(n, groups));
}

}  // namespace dynroute
