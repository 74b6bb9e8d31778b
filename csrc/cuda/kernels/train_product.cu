// train_product: the gradient of what a pointwise product read, from that of its raw output, for up to two products of
// listed samples. It goes where the values came from: to each pixel, to every second one, or to the four that a small
// gate's pixel is the mean of; zeros go to those that nobody read.
//
// Work: items as train_forward's, over the raw output's pixels. A is the raw output's gradient, made as it is read
// (rounded, as it is an operand); the product is gemm.cuh's. Memory: raw output and its gradient once, the input's
// once.
#include "train_tiles.cuh"

namespace dynroute::cuda {

// A result to the cell of input pixels that it belongs to.
template <class T>
__device__ inline void spread(const TrainProductJob& job, T* out, int y, int x, int channel,
                              const float (&from)[kVector<T>]) {
  constexpr int V = kVector<T>;
  const int n = job.transposed.n, step = job.step;
  const int y_end = y == job.gradient.h - 1 ? job.h : (y + 1) * step,
            x_end = x == job.gradient.w - 1 ? job.w : (x + 1) * step;
  const T* const rectified = static_cast<const T*>(job.rectified);
  for (int yi = y * step; yi < y_end; ++yi)
    for (int xi = x * step; xi < x_end; ++xi) {
      const int dy = yi - y * step, dx = xi - x * step, at = (yi * job.w + xi) * n + channel;
      const bool is = dy >= job.first && dy <= job.last && dx >= job.first && dx <= job.last;
      float values[V];
#pragma unroll
      for (int i = 0; i < V; ++i) values[i] = is ? job.share * from[i] : 0;
      if (rectified && is) {
        float read[V];
        unpack<T>(load_map(rectified + (out - static_cast<T*>(job.out)) + at), read);
#pragma unroll
        for (int i = 0; i < V; ++i) values[i] = read[i] > 0 ? values[i] : 0;
      }
      store_global(out + at, pack<T>(values));
    }
}

template <class T, int Width>
__device__ inline void product_item(const TrainProductJob& job, const TrainPlace& at, unsigned char* memory) {
  using Tile = TrainTile<T, Width>;
  const Matrix& w = job.transposed;
  const TrainGradient& gradient = job.gradient;
  fill_rows<T>(reinterpret_cast<T*>(memory), row_of_a<Tile>(w.k_pad), gradient.c, w.k_pad, at.y, at.x, gradient.h,
               gradient.w, [&](int channel) { return GradientValues<T>(gradient, at.sample, channel); });
  T* const out = static_cast<T*>(job.out) + int64_t(at.sample) * job.h * job.w * w.n;
  multiply_rows<Tile>(memory, train_room(w, 1, false, sizeof(T)), w, at.first, at.last,
                      [&](const typename Tile::Accumulators& sums, int n) {
                        constexpr int V = kVector<T>;
                        const int thread = thread_here();
#pragma unroll
                        for (int j = 0; j < Tile::kColumns; j += V)
#pragma unroll
                          for (int i = 0; i < Tile::kRows; ++i) {
                            float values[V];
#pragma unroll
                            for (int e = 0; e < V; ++e) values[e] = Tile::value(sums, i, j + e);
                            const int row = Tile::row(i, thread), channel = n + Tile::column(j, thread);
                            const int y = at.y + row / kSepconvWide, x = at.x + row % kSepconvWide;
                            if (channel < w.n && y < gradient.h && x < gradient.w)
                              spread(job, out, y, x, channel, values);
                          }
                      });
}

template <class T>
__device__ inline void train_product(const TrainProductParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  for_items<T>(p.job, p.n, p.enough, [&](const TrainProductJob& job, const TrainPlace& place) {
    if (sepconv_width(job.transposed) == 64) product_item<T, 64>(job, place, memory);
    else product_item<T, 128>(job, place, memory);
  });
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(train_product, TrainProductParams, kTrainThreads, kTrainResident)
