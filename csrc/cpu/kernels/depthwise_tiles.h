// Depthwise 3x3 of a tile of pixels into the tiles of a product (tiles.h), in pieces that another product leaves room
// for. Unit of work: a piece is P neighbouring pixels x 32 channels in registers, split into bfloat16 parts there.
#pragma once
#include "depthwise.h"
#include "tiles.h"

namespace dynroute::DYNROUTE_TARGET {

// rows_of(i) gives the three input rows of the tile's i-th row.
template <class S, int Stride, class RowsOf>
class DepthwisePieces {
  static constexpr int P = kPixels<Stride>;

 public:
  struct Args {
    int w_in, pad, channels;
    const float* weights;  // [9][channels]
    int x, count, rows;    // columns [x, x + count) of that many rows
    bf16* tiles;           // of those pixels, row by row
  };
  DepthwisePieces(const Args& args, const RowsOf& rows_of) : at_(args), rows_of_(rows_of) {
    const int end = at_.x + at_.count;
    inner_begin_ = min(end, max(at_.x, int(ceil_div(at_.pad, Stride))));
    inner_end_ = end;
    while (inner_end_ > inner_begin_ && (inner_end_ - 1) * Stride - at_.pad + 3 > at_.w_in) --inner_end_;
    x_ = at_.x;
    in_ = rows_of_(0);
  }
  int pieces() const {
    const int inner = inner_end_ - inner_begin_;
    const int blocks = at_.count - inner + (inner >= P ? int(ceil_div(inner, P)) : inner);
    return at_.rows * blocks * int(ceil_div(at_.channels, kTileInputs));
  }
  static void piece(void* work) { static_cast<DepthwisePieces*>(work)->next(); }

 private:
  DYNROUTE_INLINE void next() {
    const bool block = x_ >= inner_begin_ && x_ < inner_end_ && inner_end_ - inner_begin_ >= P;
    // what blocks leave over is covered by one more that starts earlier
    const int x = block ? min(x_, inner_end_ - P) : x_;
    if (block) put<P>(x);
    else put<1>(x);
    if ((c_ += kTileInputs) < at_.channels) return;
    c_ = 0;
    x_ = x + (block ? P : 1);
    if (x_ < at_.x + at_.count) return;
    x_ = at_.x;
    if (++row_ < at_.rows) in_ = rows_of_(row_);
  }
  template <int N>
  DYNROUTE_INLINE void put(int x) {
    if (c_ + kTileInputs <= at_.channels) put<N>(x, [](const float* p, int) DYNROUTE_ALWAYS { return load(p); });
    else
      put<N>(x, [this](const float* p, int from)
                    DYNROUTE_ALWAYS { return load(p, min(max(at_.channels - c_ - from, 0), kPanel)); });
  }
  template <int N, class Load>
  DYNROUTE_INLINE void put(int x, Load load_from) {
    const int x_in = x * Stride - at_.pad, begin = max(0, -x_in), end = min(3, at_.w_in - x_in);
    Vec<float> sum[2][N];
    DYNROUTE_UNROLL for (int j = 0; j < 2; ++j) depthwise_sums<float, N, Stride>(
        in_, x_in, begin, end, at_.channels, at_.weights, c_ + j * kPanel,
        [&](const float* p) DYNROUTE_ALWAYS { return load_from(p, j * kPanel); }, sum[j]);
    const int blocks = int(ceil_div(at_.channels, kTileInputs)), first = row_ * at_.count + x - at_.x;
    DYNROUTE_UNROLL for (int i = 0; i < N; ++i)
        put_inputs<S>(sum[0][i], sum[1][i], pixel(at_.tiles, first + i, blocks) + c_ * (kParts<S> * kTileRows));
  }
  static bf16* pixel(bf16* tiles, int i, int blocks) {
    return tiles + int64_t(i / kTileRows) * blocks * kParts<S> * kTileValues + i % kTileRows * kTileInputs;
  }

  const Args at_;
  const RowsOf rows_of_;
  Rows<float> in_;
  int inner_begin_, inner_end_, x_, c_ = 0, row_ = 0;
};

}  // namespace dynroute::DYNROUTE_TARGET
