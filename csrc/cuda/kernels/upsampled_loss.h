// What `upsampled_loss` is told, how its work is cut, and how it is launched.
//
// Full-size columns fall into gaps: those of gap j lie between the centres of the low-resolution columns j - 1 and j,
// are a blend of these two alone, and give gradients to no others. A map has w + 1 gaps across, the outer two of which
// lie beyond the first and the last centre, where a blend is of one column with itself; rows likewise.
#pragma once
#include <algorithm>

#include "params.h"

namespace dynroute::cuda {

constexpr int kLossResident = 4;  // blocks of a multiprocessor, by their registers
// Classes that a thread may hold: alone, beside other lanes with the same pixels, as one of a warp with more. Odd:
// neighbouring threads' lie so far apart in shared memory, and no banks conflict. At most as many as registers allow.
constexpr int kLossClasses[] = {3, 11, 19}, kSharedLossClasses[] = {11, 17}, kWideLossClasses = 11;
constexpr int kLossTasksWanted = 320;  // two or three to each multiprocessor of a large device

// A task makes the gradient of `tile` low-resolution columns in `rows` rows of a sample. Of these it computes one gap
// more each way than there are columns and rows, so that nothing is exchanged with its neighbours: of 32 columns' and
// 17 rows' gaps one is done twice. A pass is `columns` full-size columns of it, with `1 << lane_bits` lanes to each.
struct LossTiling {
  int classes;      // of a thread, one of the above
  int lane_bits;    // lanes that share a pixel's classes
  int wide;         // even a warp does not hold all classes: they come in chunks, straight from global memory
  int columns;      // of a pass, whole gaps wherever one fits
  int low_columns;  // that a pass reads
  int tile, rows, tiles, bands, tasks;
  DYNROUTE_DEVICE_TOO int padded() const { return classes << lane_bits; }  // classes of all lanes, and of a chunk
};

struct UpsampledLossParams {
  const float* logits;    // [n][h * w * k]
  const int64_t* labels;  // [n][out_h * out_w]
  const float* weight;    // [k]; null: 1
  float* loss;            // [1]
  float* gradient;        // like logits; null: not wanted
  double* partials;       // [tasks]
  int* arrivals;          // [1], zero
  int64_t ignore_index;
  int n, h, w, k, factor, out_h, out_w;
  LossTiling tiling;
};

// By the shape alone. Of what decides in which order a gradient is summed - all but `rows` - the batch decides nothing.
inline LossTiling loss_tiling(int n, int h, int w, int k, int factor) {
  LossTiling t = {};
  const auto fitting = [&](const auto& sizes) {
    for (const int size : sizes)
      if (t.classes == 0 && (size << t.lane_bits) >= k) t.classes = size;
  };
  fitting(kLossClasses);
  while (t.classes == 0 && t.lane_bits < 5) ++t.lane_bits, fitting(kSharedLossClasses);
  t.wide = t.classes == 0;
  if (t.wide) t.classes = kWideLossClasses;
  const int most = kThreads >> t.lane_bits, gaps = most / factor;  // of a pass
  const int across = gaps ? round_up(32, gaps) : 32;               // gaps of a tile, whole passes
  t.tiles = ceil_div(w, across - 1), t.tile = ceil_div(w, t.tiles);
  t.tiles = ceil_div(w, t.tile);
  t.columns = std::min(gaps ? gaps * factor : most, (t.tile + 1) * factor);
  t.low_columns = (t.columns % factor == 0 ? t.columns / factor : 2) + 1;
  const auto tasks = [&](int rows) { return int64_t(n) * t.tiles * ceil_div(h, rows); };
  t.rows = 16;
  while (t.rows > 2 && tasks(t.rows) < kLossTasksWanted) t.rows /= 2;
  t.bands = ceil_div(h, t.rows), t.tasks = int(tasks(t.rows));
  return t;
}

inline LaunchShape upsampled_loss_shape(const UpsampledLossParams& p, DType, const DeviceLimits&) {
  const LossTiling& t = p.tiling;
  const int shares = round_up(2 * p.factor, 4), slots = 2 * kThreads * t.classes;
  const int staged = t.wide ? 0 : 2 * t.low_columns * t.padded();
  const int floats = shares + slots + staged;
  return {std::max(t.tasks, 1), kThreads, floats * int(sizeof(float))};
}

}  // namespace dynroute::cuda
