// How maps are cut into tasks. Everything here is a function of one map's shape: never of N, of the threads or of the
// routes.
#pragma once
#include "jobs.h"

namespace dynroute::cuts {

constexpr int kMinTaskPixels = 64;       // of a task of a one-stage kernel, so that a pass over the weights pays
constexpr int kStemRows = 16;            // rows at scale 1/4 per band of the stem
constexpr int kAggregateSize = 1 << 16;  // elements per task of a pass that only moves memory

inline int at_least(int64_t value, int64_t floor) { return int(value > floor ? value : floor); }

// Rows of a task of one stage that stands alone: an eighth of the map, but no fewer pixels than that.
inline int stage_rows(int h_out, int w_out) { return at_least(ceil_div(h_out, 8), ceil_div(kMinTaskPixels, w_out)); }

// A full 3x3 convolution: the stem's first stage, or the predictor.
inline Tiling convolution_tiling(int band_rows) { return {band_rows, 1, 48, 48}; }

template <class T>
int sepconv_tasks(const SepconvJob<T>& job) {
  return int(ceil_div(job.stage[job.stages - 1].h_out, job.tiling.band_rows));
}

inline int transform_pixels(int h_out, int w_out) {
  return at_least(ceil_div(int64_t(h_out) * w_out, 8), kMinTaskPixels);
}

template <class T>
int transform_tasks(const TransformJob<T>& job) {
  return int(ceil_div(int64_t(job.h_out) * job.w_out, transform_pixels(job.h_out, job.w_out)));
}

inline int aggregate_rows(int w, int c) { return at_least(kAggregateSize / (int64_t(w) * c), 1); }

template <class T>
int aggregate_tasks(const AggregateJob<T>& job) {
  return int(ceil_div(job.h, aggregate_rows(job.w, job.c)));
}

// Rows of the gate's own map (a quarter of x's when small).
inline int gate_rows(int h, int w, bool small) { return stage_rows(gate_side(h, small), gate_side(w, small)); }
inline int gate_tasks(int h, int w, bool small) { return int(ceil_div(gate_side(h, small), gate_rows(h, w, small))); }

constexpr int kUpsampleRows = 8;
template <class T>
int upsample_tasks(const UpsampleJob<T>& job) {
  return int(ceil_div(job.h, kUpsampleRows));
}

}  // namespace dynroute::cuts
