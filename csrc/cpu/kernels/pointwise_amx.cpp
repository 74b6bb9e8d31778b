// Pointwise product of a tile of pixels with packed weights, on the tile multiply unit (tiles.h).
// Unit of work: 32 pixels x 32 output channels over the whole of k: four sums in tile registers, two tiles of pixels
// and two of weights beside them. The unit starts a product every 16 cycles and ends it after some 52, so that four
// sums keep it busy; a load takes 8 cycles of the load ports.
//
// float32: a factor is the sum of three bfloat16 parts, and the product is the six products of parts whose indices add
// up to at most 2; what is left out is of order 2^-24. From one to the next only one factor changes: 14 loads for 24
// products. Every output is one chain of products in one order, whatever block it is made in.
//
// Pixels are the outer loop while 32 of them fit L1, and the weights stream from L2. Where they do not fit, weights
// are the outer loop, as they are then the larger part and may come from further than L2.
//
// Meanwhile the vector units have one of their two ports left (the tile unit sits on the other): between products, rows
// of the block before are finished (shift, residual, ReLU), pieces of the next product's pixels are made, and memory
// that will be wanted soon is prefetched.
#include "target.h"
#include "tiles.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

constexpr int kBlock = 2 * kTileRows;  // pixels and channels of a block
constexpr int kNearBlocks = 6;         // blocks of inputs up to which 32 pixels fit L1

template <bool Residual, bool Relu, bool Sums>
struct Epilogue {
  static constexpr bool residual = Residual, relu = Relu, sums = Sums;
};

template <class S, class O, class E>
class Product {
  static constexpr int kSteps = kParts<S> == 1 ? 1 : 6;  // products of parts per sum and block of inputs
  static constexpr int kPrefetchLines = kPrefetchPerBlock / 64;

 public:
  explicit Product(const PointwiseArgs<float, O>& args)
      : args_(args),
        blocks_(int(ceil_div(args.weights.k, kTileInputs))),
        steps_(blocks_ * kSteps),
        prefetch_lines_(args.prefetch ? int(ceil_div(kPrefetchLines, steps_)) : 0),
        prefetch_(static_cast<const char*>(args.prefetch)),
        all_steps_(int(ceil_div(args.m, kBlock) * ceil_div(args.weights.n, kBlock)) * steps_),
        pieces_(args.interleaved ? args.interleaved->pieces : 0),
        all_pieces_(pieces_) {}

  void run() {
    const int panels = int(ceil_div(args_.weights.n, kPanel));
    asm volatile("" : : : "memory");  // tiles are read behind the compiler's back
    const auto one = [&](int row, int panel) {
      const bool tall = args_.m - row > kTileRows, wide = panels - panel > 1;
      if (tall && wide) block<2, 2>(row, panel);
      else if (tall) block<2, 1>(row, panel);
      else if (wide) block<1, 2>(row, panel);
      else block<1, 1>(row, panel);
    };
    if (blocks_ <= kNearBlocks) {
      for (int row = 0; row < args_.m; row += kBlock)
        for (int panel = 0; panel < panels; panel += 2) one(row, panel);
    } else {
      for (int panel = 0; panel < panels; panel += 2)
        for (int row = 0; row < args_.m; row += kBlock) one(row, panel);
    }
    finish(kBlock);
    for (; pieces_ > 0; --pieces_) args_.interleaved->piece(args_.interleaved->work);
  }

 private:
  template <int MR, int NR>
  DYNROUTE_INLINE void block(int row, int panel) {
    const int64_t size = int64_t(blocks_) * kParts<S> * kTileValues;  // of 16 pixels, or of a panel
    const bf16* a = args_.tiles + row / kTileRows * size;
    const bf16* b = reinterpret_cast<const bf16*>(args_.weights.panels) + panel * size;
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    const int rows_per_step = int(ceil_div(rows_left_, steps_));
    const auto pixels = [&](int part) DYNROUTE_ALWAYS {
      tile_load<4>(a + part * kTileValues);
      if constexpr (MR == 2) tile_load<5>(a + size + part * kTileValues);
    };
    const auto weights = [&](int part) DYNROUTE_ALWAYS {
      tile_load<6>(b + part * kTileValues);
      if constexpr (NR == 2) tile_load<7>(b + size + part * kTileValues);
    };
    const auto multiply = [&]() DYNROUTE_ALWAYS {
      tile_multiply<0, 4, 6>();
      if constexpr (NR == 2) tile_multiply<1, 4, 7>();
      if constexpr (MR == 2) tile_multiply<2, 5, 6>();
      if constexpr (MR == 2 && NR == 2) tile_multiply<3, 5, 7>();
      finish(rows_per_step);
      prefetch_some();
      interleave();
    };
    for (int i = 0; i < blocks_; ++i, a += kParts<S> * kTileValues, b += kParts<S> * kTileValues) {
      if constexpr (kParts<S> == 1) {
        pixels(0), weights(0), multiply();
      } else {
        pixels(0), weights(2), multiply();
        weights(1), multiply();
        pixels(1), multiply();
        weights(0), multiply();
        pixels(2), multiply();
        pixels(0), multiply();
      }
    }
    finish(kBlock);
    begin_finish(row, panel, MR, NR);
    tile_store<0>(sums_, kBlock);
    if constexpr (NR == 2) tile_store<1>(sums_ + kPanel, kBlock);
    if constexpr (MR == 2) tile_store<2>(sums_ + kTileRows * kBlock, kBlock);
    if constexpr (MR == 2 && NR == 2) tile_store<3>(sums_ + kTileRows * kBlock + kPanel, kBlock);
  }

  void begin_finish(int row, int panel, int tile_rows, int panels) {
    const int column = panel * kPanel;
    sums_ = buffers_[which_ ^= 1];
    next_sums_ = sums_;
    rows_left_ = min(args_.m - row, tile_rows * kTileRows);
    lanes_ = min(args_.weights.n - column, panels * kPanel);
    at_ = int64_t(row) * args_.weights.n + column;
    column_ = column;
    for (int j = 0; j < panels; ++j) {
      shift_[j] = Vec<float>::load(args_.weights.shift + column + j * kPanel);
      if constexpr (E::sums) total_[j] = Vec<float>::load(args_.sums + column + j * kPanel);
    }
    panels_ = panels;
  }

  // Up to `rows` more rows of the block before.
  DYNROUTE_INLINE void finish(int rows) {
    for (; rows > 0 && rows_left_ > 0; --rows, --rows_left_, next_sums_ += kBlock, at_ += args_.weights.n) {
      if (lanes_ == kBlock) {
        finish_vector(0, kPanel), finish_vector(1, kPanel);
      } else {
        finish_vector(0, min(lanes_, kPanel));
        if (lanes_ > kPanel) finish_vector(1, lanes_ - kPanel);
      }
      if constexpr (E::sums)
        if (rows_left_ == 1)
          for (int j = 0; j < panels_; ++j) total_[j].store(args_.sums + column_ + j * kPanel);
    }
  }
  DYNROUTE_INLINE void finish_vector(int j, int lanes) {
    const bool whole = lanes == kPanel;
    const int64_t at = at_ + j * kPanel;
    Vec<float> v = Vec<float>::load(next_sums_ + j * kPanel) + shift_[j];
    if constexpr (E::residual) v = v + (whole ? load(args_.residual + at) : load(args_.residual + at, lanes));
    if constexpr (E::relu) v = relu(v);
    if constexpr (E::sums) total_[j] = total_[j] + v;
    else if (whole) store(args_.out + at, v);
    else store(args_.out + at, v, lanes);
  }

  DYNROUTE_INLINE void prefetch_some() {
    for (int i = 0; i < prefetch_lines_; ++i, prefetch_ += 64) __builtin_prefetch(prefetch_, 0, 2);
  }

  // Spread evenly over all products.
  DYNROUTE_INLINE void interleave() {
    for (due_ += all_pieces_; due_ >= all_steps_ && pieces_ > 0; due_ -= all_steps_, --pieces_)
      args_.interleaved->piece(args_.interleaved->work);
  }

  const PointwiseArgs<float, O>& args_;
  const int blocks_, steps_, prefetch_lines_;
  const char* prefetch_;
  const int all_steps_;
  int pieces_, due_ = 0;
  const int all_pieces_;
  // the block before: its sums, and how far it is finished
  alignas(64) float buffers_[2][kBlock * kBlock];  // [32 pixels][32 channels]
  int which_ = 0;
  float *sums_ = nullptr, *next_sums_ = nullptr;
  int rows_left_ = 0, lanes_ = 0, column_ = 0, panels_ = 0;
  int64_t at_ = 0;
  Vec<float> shift_[2], total_[2];
};

template <class S, class O, class E>
void run(const PointwiseArgs<float, O>& args) {
  Product<S, O, E>(args).run();
}

}  // namespace

template <class S, class O>
void pointwise_in_tiles(const PointwiseArgs<float, O>& args) {
  if (args.sums) run<S, O, Epilogue<false, true, true>>(args);
  else if (args.residual && args.relu) run<S, O, Epilogue<true, true, false>>(args);
  else if (args.residual) run<S, O, Epilogue<true, false, false>>(args);
  else if (args.relu) run<S, O, Epilogue<false, true, false>>(args);
  else run<S, O, Epilogue<false, false, false>>(args);
}
template void pointwise_in_tiles<float>(const PointwiseArgs<float, float>&);
template void pointwise_in_tiles<bf16>(const PointwiseArgs<float, float>&);
template void pointwise_in_tiles<bf16>(const PointwiseArgs<float, bf16>&);

}  // namespace dynroute::DYNROUTE_TARGET
