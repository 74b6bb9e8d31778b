// The forward of training stages: raw outputs with their sums; and BatchNorm applied to what a stage left.
// Unit of work: a band of a sample's rows, in tiles of pixels. A tile's depthwise goes to a panel in L2, the product
// writes y, and y's sums are added up while it is in L1: some 3 operations for the k multiply-adds that made a value.
#include "train_output.h"
#include "train_rows.h"

namespace dynroute::DYNROUTE_TARGET {

constexpr int kTrainPixels = 96;  // of a tile: weights from L2 are read once for so many

template <class T>
void train_forward(const TrainForwardJob<T>& job, int task) {
  const TrainStage<T>& stage = job.stage;
  const Band band = band_of(task, stage.samples, stage.h_out, job.band_rows);
  const int n = stage.c_out;
  const int64_t stride = panel_stride<T>(stage.c_in);
  const int max_pixels = max(kTrainPixels, stage.w_out);  // a whole row always fits
  const int64_t memory = InputRows<T>::memory(stage);
  ScratchParts<T> parts(2, max_pixels * stride + memory);
  T* panel = parts.take(max_pixels * stride);
  InputRows<T> in(stage, parts.take(memory));
  in.of_sample(band.sample);
  const RawOut<T> y_sample = job.y.from(int64_t(band.sample) * stage.h_out * stage.w_out * n);
  T* sums = job.sums + int64_t(task) * 3 * n;
  for_tiles(band.begin, band.end, stage.w_out, kTrainPixels, [&](const PixelTile& tile) {
    fill_panel(stage, in, tile, panel, stride);
    const bool first = tile.y == band.begin && tile.x == 0;
    multiply(panel, stride, tile.pixels(), job.pointwise, y_sample.from((int64_t(tile.y) * stage.w_out + tile.x) * n),
             first, sums);
  });
  const int64_t pixels = int64_t(band.end - band.begin) * stage.w_out;
  count(job.macs, pixels * stage.c_in * ((stage.depthwise ? 9 : 0) + int64_t(n)));
}

template <class T>
void train_apply(const TrainApplyJob<T>& given, int task) {
  const TrainApplyJob<T> job = given;
  const Band band = band_of(task, job.samples, job.h, job.band_rows);
  const int64_t from = (int64_t(band.sample) * job.h + band.begin) * job.w * job.c;
  const int64_t pixels = int64_t(band.end - band.begin) * job.w;
  const Vec<T> weight = Vec<T>::set(weight_of(job.weight, band.sample));
  with_values(job.y, [&](auto* y) DYNROUTE_ALWAYS {
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t at = from + i * job.c;
      for_channels<T>(job.c, [&](int c, auto load, auto store) DYNROUTE_ALWAYS {
        Vec<T> v = fma(load(job.scale + c), load(y + at + c), load(job.shift + c));
        if (job.residual) v = v + load(job.residual + at + c);
        v = job.relu ? relu(v) : v;
        store(job.out + at + c, job.weight ? weight * v : v);
      });
    }
  });
}

template void train_forward<float>(const TrainForwardJob<float>&, int);
template void train_apply<float>(const TrainApplyJob<float>&, int);
#if defined(DYNROUTE_TARGET_PORTABLE)
template void train_forward<double>(const TrainForwardJob<double>&, int);
template void train_apply<double>(const TrainApplyJob<double>&, int);
#endif

}  // namespace dynroute::DYNROUTE_TARGET
