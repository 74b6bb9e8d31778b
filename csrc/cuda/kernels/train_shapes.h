// How training's work is cut, for the host that sizes launches and the device that walks over it, and how its kernels
// are launched. Cuts depend on shapes alone.
#pragma once
#include <algorithm>

#include "params_train.h"
#include "sepconv.h"

namespace dynroute::cuda {

// Products: tiles of 8 x 8 output pixels (float: 8 x 4), as sepconv's. A tile's output channels are shared by several
// items where there are too few tiles to fill a device.
DYNROUTE_DEVICE_TOO constexpr int train_tiles(int h, int w, int bytes) {
  return ceil_div(h, sepconv_high(bytes)) * ceil_div(w, kSepconvWide);
}

// Sums over pixels: a run of a sample's pixels times 64 channels; short ones, as two samples of 128 x 128 pixels have
// to fill a device.
constexpr int kRunPixels = 128, kRunChannels = 64;
DYNROUTE_DEVICE_TOO constexpr int train_runs(int pixels) { return ceil_div(pixels, kRunPixels); }
DYNROUTE_DEVICE_TOO constexpr int train_chunks(int c) { return ceil_div(c, kRunChannels); }

// The depthwise's backward: a run of tiles of 8 x 8 input pixels times 64 channels.
constexpr int kTapsTile = 8, kTapsRun = 2;
DYNROUTE_DEVICE_TOO constexpr int taps_tiles(int h, int w) { return ceil_div(h, kTapsTile) * ceil_div(w, kTapsTile); }
DYNROUTE_DEVICE_TOO constexpr int taps_runs(int h, int w) { return ceil_div(taps_tiles(h, w), kTapsRun); }

// The weights' gradients: blocks of 64 or 128 output and 64 input channels; the pixels in parts, so that there are some
// 256 items, and no more parts than tiles.
constexpr int kOuterItems = 256, kOuterInputs = 64;
DYNROUTE_DEVICE_TOO constexpr int outer_width(int c_out) { return c_out > 64 ? 128 : 64; }
DYNROUTE_DEVICE_TOO constexpr int outer_blocks(int c_out, int c_in) {
  return ceil_div(c_out, outer_width(c_out)) * ceil_div(c_in, kOuterInputs);
}
inline int outer_splits(int n, int tiles, int c_out, int c_in) {
  return std::max(1, std::min(n * tiles, ceil_div(kOuterItems, outer_blocks(c_out, c_in))));
}

constexpr int kTrainResident = 2;  // blocks of a multiprocessor, by their registers

inline LaunchShape train_shape(int64_t items, int shared, const DeviceLimits& device, int resident = kTrainResident) {
  const int fit = std::max(1, std::min(resident, device.shared_per_multiprocessor / (shared + kReservedShared)));
  const int64_t most = int64_t(device.multiprocessors) * fit;
  return {int(std::clamp<int64_t>(items, 1, most)), kTrainThreads, shared};
}

// A product's shared memory: A; then, one after the other, the halo with its taps and the ring of weights; then sums of
// rows of warps, two for each, and pivots.
DYNROUTE_DEVICE_TOO constexpr int train_room(const Matrix& product, int stride, bool has_taps, int bytes) {
  const int ring = least_ring_bytes(sepconv_width(product)), halo = has_taps ? sepconv_halo_bytes(stride, bytes) : 0;
  return ring > halo ? ring : halo;
}
constexpr int kTrainTotals = (2 * 8 + 1) * 128 * int(sizeof(float));
DYNROUTE_DEVICE_TOO constexpr int train_product_bytes(const Matrix& product, int stride, bool has_taps, int bytes) {
  return sepconv_a_bytes(product.k_pad, bytes) + train_room(product, stride, has_taps, bytes) + kTrainTotals;
}

// The tiles that a job of train_forward or train_product walks over: of maps of h x w pixels of the samples.
struct TrainTiles {
  const TrainSamples& samples;
  const Matrix& product;
  int h, w, stride;
  bool has_taps;
};
DYNROUTE_DEVICE_TOO inline TrainTiles tiles_of(const TrainForwardJob& job) {
  return {job.samples, job.product, job.h, job.w, job.stride, job.taps != nullptr};
}
DYNROUTE_DEVICE_TOO inline TrainTiles tiles_of(const TrainProductJob& job) {
  return {job.samples, job.transposed, job.gradient.h, job.gradient.w, 1, false};
}
template <class Params>
LaunchShape train_tiles_shape(Params& p, DType type, const DeviceLimits& device) {
  int64_t items = 0;
  int shared = 0;
  p.enough = device.multiprocessors;
  for (const auto& job : p.job) {
    const TrainTiles of = tiles_of(job);
    if (!of.product.weight) continue;
    const int tiles = p.n * train_tiles(of.h, of.w, bytes_of(type));
    items += std::max(tiles, std::min(tiles * sepconv_blocks(of.product), p.enough));
    shared = std::max(shared, train_product_bytes(of.product, of.stride, of.has_taps, bytes_of(type)));
  }
  return train_shape(items, shared, device);
}
inline LaunchShape train_forward_shape(TrainForwardParams& p, DType type, const DeviceLimits& device) {
  return train_tiles_shape(p, type, device);
}
inline LaunchShape train_product_shape(TrainProductParams& p, DType type, const DeviceLimits& device) {
  return train_tiles_shape(p, type, device);
}

// The gradient's rows and the input's, each with as much between rows as keeps banks apart; then the halo.
DYNROUTE_DEVICE_TOO constexpr int outer_row(int channels, int bytes) { return channels * bytes + 16; }
DYNROUTE_DEVICE_TOO constexpr int outer_factor_bytes(int channels, int bytes) {
  return kSepconvWide * sepconv_high(bytes) * outer_row(channels, bytes);
}
inline LaunchShape train_outer_shape(const TrainOuterParams& p, DType type, const DeviceLimits& device) {
  const int bytes = bytes_of(type);
  int64_t items = 0;
  int shared = 0;
  for (const TrainOuterJob& job : p.job) {
    if (!job.partials) continue;
    items += int64_t(job.splits) * outer_blocks(job.gradient.c, job.source.c);
    shared = std::max(shared, outer_factor_bytes(outer_width(job.gradient.c), bytes) +
                                  outer_factor_bytes(kOuterInputs, bytes) +
                                  (job.taps ? sepconv_halo_bytes(job.stride, bytes) : 0));
  }
  return train_shape(items, shared, device);
}

constexpr int kTapsHalo = kTapsTile + 2;
DYNROUTE_DEVICE_TOO constexpr int rows_scratch(int quantities) {
  return quantities * kTrainThreads / 32 * kRunChannels * int(sizeof(float));
}
inline LaunchShape train_depthwise_shape(const TrainDepthwiseParams& p, DType type, const DeviceLimits& device) {
  const int halo = kTapsHalo * kTapsHalo * kRunChannels * bytes_of(type), taps = 9 * kRunChannels * int(sizeof(float));
  const int64_t items = int64_t(p.n) * taps_runs(p.source.h, p.source.w) * train_chunks(p.source.c);
  return train_shape(items, std::max(halo, rows_scratch(kDepthwiseRows)) + taps, device);
}

// Kernels that walk over runs of pixels.
constexpr int kApplyResident = 4, kSumsResident = 2;
inline LaunchShape runs_shape(int64_t runs, int quantities, const DeviceLimits& device, int resident) {
  return train_shape(runs, rows_scratch(quantities), device, resident);
}
inline int64_t all_runs(int n, int pixels, int c) { return int64_t(n) * train_runs(pixels) * train_chunks(c); }
inline LaunchShape train_sums_shape(const TrainSumsParams& p, DType, const DeviceLimits& device) {
  int64_t runs = 0;
  for (const TrainSumsJob& job : p.job) runs += job.grad ? all_runs(p.n, job.pixels, job.c) : 0;
  return runs_shape(runs, 2, device, kSumsResident);
}
inline LaunchShape train_hidden_shape(TrainHiddenParams& p, DType, const DeviceLimits& device) {
  p.w = divisor(p.hidden.w);
  return runs_shape(all_runs(p.n, p.hidden.h * p.hidden.w, p.hidden.c), 2, device, kTrainResident);
}
inline LaunchShape train_gate_pool_shape(const TrainGatePoolParams& p, DType, const DeviceLimits& device) {
  return runs_shape(all_runs(p.n, p.pixels, p.c), kPoolSums, device, kSumsResident);
}
inline LaunchShape train_apply_shape(const TrainApplyParams& p, DType, const DeviceLimits& device) {
  int64_t runs = 0;
  for (const TrainApplyJob& job : p.job) runs += job.out ? all_runs(p.n, job.pixels, job.c) : 0;
  return train_shape(runs, 0, device, kApplyResident);
}

// Kernels that add up what tasks left: blocks of 4 channels.
constexpr int kNormChannels = 4;
template <class Job>
int norm_blocks(const Job (&jobs)[2]) {
  int blocks = 0;
  for (const Job& job : jobs) blocks += ceil_div(job.c, kNormChannels);
  return blocks;
}
inline LaunchShape train_norm_shape(TrainNormParams& p, DType type, const DeviceLimits&) {
  for (TrainNormJob& job : p.job)
    if (job.c > 0)
      job.across = divisor(ceil_div(job.w, kSepconvWide)),
      job.tiles = divisor(train_tiles(job.h, job.w, bytes_of(type)));
  return {norm_blocks(p.job), kTrainThreads, 0};
}
inline LaunchShape train_norm_backward_shape(const TrainNormBackwardParams& p, DType, const DeviceLimits&) {
  return {norm_blocks(p.job), kTrainThreads, 0};
}

// Sums over parts: four neighbouring values to a thread; the more parts, the more threads to each four.
constexpr int kReduceResident = 4, kReduceGroup = 4, kManyParts = 16, kMostParts = 256;
DYNROUTE_DEVICE_TOO constexpr int reduce_across(const TrainReduction& of, int n) {
  const int parts = of.parts * (of.all ? 1 : n);
  return parts >= kMostParts ? 8 : parts >= kManyParts ? 32 : kTrainThreads;
}
DYNROUTE_DEVICE_TOO constexpr int reduce_items(const TrainReduction& of, int n) {
  return ceil_div(of.size, kReduceGroup * reduce_across(of, n));
}
inline LaunchShape train_reduce_shape(const TrainReduceParams& p, DType, const DeviceLimits& device) {
  int64_t items = 0;
  for (const TrainReduction& one : p.list) items += one.from ? reduce_items(one, p.n) : 0;
  return train_shape(items, 0, device, kReduceResident);
}
inline LaunchShape train_alphas_shape(const TrainAlphasParams& p, DType, const DeviceLimits&) {
  return {p.n, kTrainThreads, 0};
}
// The gate's pooling in 32 sums at a time: how many warps share the runs of these.
DYNROUTE_DEVICE_TOO constexpr int pool_groups(int c) { return ceil_div(kPoolSums * c, 32); }
DYNROUTE_DEVICE_TOO constexpr int pool_shares(int c) {
  return pool_groups(c) < kTrainThreads / 32 ? kTrainThreads / 32 / pool_groups(c) : 1;
}
inline LaunchShape train_gate_end_shape(const TrainGateEndParams& p, DType, const DeviceLimits&) {
  return {p.n, kTrainThreads, pool_groups(p.c) * pool_shares(p.c) * 32 * int(sizeof(double))};
}
constexpr int kBeginChannels = 32;
inline LaunchShape train_gate_begin_shape(const TrainGateBeginParams& p, DType, const DeviceLimits&) {
  return {ceil_div(p.c, kBeginChannels), kTrainThreads, 0};
}
inline LaunchShape train_prepare_shape(const TrainPrepareParams& p, DType, const DeviceLimits& device) {
  int64_t values = p.cleared ? p.cleared_size / 4 : 1;
  for (const TrainMatrix& matrix : p.matrix)
    if (matrix.weight) values = std::max(values, int64_t(matrix.to.n_pad) * matrix.to.k_pad);
  return {int(std::clamp<int64_t>(values / kTrainThreads, 1, 2 * device.multiprocessors)), kTrainThreads, 0};
}

}  // namespace dynroute::cuda
