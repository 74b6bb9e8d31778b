// Pointwise product of a tile of pixels with packed weights.
// Unit of work: MR pixels x P panels (16 output channels each) held in registers over the whole of k; 8 x 32 with
// AVX-512, 6 x 16 with AVX2 and NEON, and narrower ones at the edges.
// L1 holds the panels of one column block (k x 32), reused by every row of the tile; the tile itself (m x k, written
// just before by the depthwise) streams from L1 or L2, MR rows at a time. Column blocks are the outer loop for that.
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

template <class T>
struct Traits {  // rows per register block, with two adjacent panels (0: never) and with one
#if defined(DYNROUTE_TARGET_AVX512)
  static constexpr int pair_rows = 8, single_rows = 14;
#elif defined(DYNROUTE_TARGET_AVX2)
  static constexpr int pair_rows = 0, single_rows = 6;
#elif defined(DYNROUTE_TARGET_NEON)
  static constexpr int pair_rows = 0, single_rows = 6;
#else
  static constexpr int pair_rows = 0, single_rows = 2;
#endif
  static_assert(kPanel % Vec<T>::width == 0, "a panel is a whole number of vectors");
};

template <class T, int MR, int P>
__attribute__((noinline)) void block(const PointwiseArgs<T>& args, int row, int panel) {
  using V = Vec<T>;
  constexpr int per_panel = kPanel / V::width, NV = P * per_panel;
  const int k = args.weights.k, n = args.weights.n;
  const int64_t lda = args.lda;
  const T* a = args.a + row * lda;
  const T* b[P];
  DYNROUTE_UNROLL for (int p = 0; p < P; ++p) b[p] = args.weights.panels + (panel + p) * int64_t(k) * kPanel;

  V sum[MR][NV];
  DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) {
    V shift = V::load(args.weights.shift + panel * kPanel + j * V::width);
    DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) sum[i][j] = shift;
  }
  // every third row has a pointer of its own: rows 1 and 2 behind it are reached by scaled addressing
  const T* rows[(MR + 2) / 3];
  DYNROUTE_UNROLL for (int i = 0; i < MR; i += 3) rows[i / 3] = a + i * lda;
  const auto step = [&](int kk) DYNROUTE_ALWAYS {
    V weight[NV];
    DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) {
      weight[j] = V::load(b[j / per_panel] + kk * kPanel + (j % per_panel) * V::width);
    }
    DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) {
      V value = V::set(rows[i / 3][(i % 3) * lda + kk]);
      DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) sum[i][j] = fma(value, weight[j], sum[i][j]);
    }
  };
  const auto advance = [&](int by) DYNROUTE_ALWAYS {
    DYNROUTE_UNROLL for (const T*& row_pointer : rows) row_pointer += by;
    DYNROUTE_UNROLL for (const T*& panel_pointer : b) panel_pointer += by * kPanel;
  };
  int left_k = k;
  for (; left_k >= 4; left_k -= 4) {
    DYNROUTE_UNROLL for (int kk = 0; kk < 4; ++kk) step(kk);
    advance(4);
  }
  for (; left_k > 0; --left_k) {
    step(0);
    advance(1);
  }

  const int column = panel * kPanel;
  if (args.sums) {
    DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) {
      T* p = args.sums + column + j * V::width;
      V total = V::load(p);
      DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) total = total + (args.relu ? relu(sum[i][j]) : sum[i][j]);
      total.store(p);
    }
    return;
  }
  const bool whole = column + P * kPanel <= n;
  DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) {
    const int64_t at = int64_t(row + i) * n + column;
    DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) {
      const int left = whole ? V::width : n - column - j * V::width;
      if (left <= 0) break;
      const int64_t to = at + j * V::width;
      V v = sum[i][j];
      if (left >= V::width) {
        if (args.residual) v = v + V::load(args.residual + to);
        if (args.relu) v = relu(v);
        v.store(args.out + to);
      } else {
        if (args.residual) v = v + V::load(args.residual + to, left);
        if (args.relu) v = relu(v);
        v.store(args.out + to, left);
      }
    }
  }
}

// The last rows of a tile: MR is found at run time.
template <class T, int MR, int P>
void rest(const PointwiseArgs<T>& args, int row, int panel, int rows) {
  if constexpr (MR > 0) {
    if (rows == MR) block<T, MR, P>(args, row, panel);
    else rest<T, MR - 1, P>(args, row, panel, rows);
  }
}

template <class T, int MR, int P>
void column(const PointwiseArgs<T>& args, int panel) {
  int row = 0;
  for (; row + MR <= args.m; row += MR) block<T, MR, P>(args, row, panel);
  rest<T, MR - 1, P>(args, row, panel, args.m - row);
}

}  // namespace

template <class T>
void pointwise(const PointwiseArgs<T>& args) {
  const int panels = int(ceil_div(args.weights.n, kPanel));
  int panel = 0;
  if constexpr (Traits<T>::pair_rows > 0)
    for (; panel + 2 <= panels; panel += 2) column<T, Traits<T>::pair_rows, 2>(args, panel);
  for (; panel < panels; ++panel) column<T, Traits<T>::single_rows, 1>(args, panel);
}

template void pointwise<float>(const PointwiseArgs<float>&);
#if defined(DYNROUTE_TARGET_PORTABLE)
template void pointwise<double>(const PointwiseArgs<double>&);
#endif

}  // namespace dynroute::DYNROUTE_TARGET
