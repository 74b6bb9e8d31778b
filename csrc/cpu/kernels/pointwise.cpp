// Pointwise product of a tile of pixels with packed weights.
// Unit of work: MR pixels x P panels (16 output channels each) held in registers over the whole of k; 6 x 64 with
// AVX-512, 6 x 16 with AVX2 and NEON, and others at the edges.
// L1 or L2 holds the panels of one column block (k x 64), reused by every row of the tile; the tile itself (m x k,
// written just before by the depthwise) streams from L1 or L2, MR rows at a time. Column blocks are the outer loop for
// that.
#include "target.h"

namespace dynroute::DYNROUTE_TARGET {
namespace {

// Rows of a register block by how many adjacent panels it spans (0: never so many). Wide blocks load the pixels less
// often, tall ones the weights.
template <class T, int Panels>
constexpr int kRows = 0;
#if defined(DYNROUTE_TARGET_AVX512)
template <class T>
constexpr int kRows<T, 4> = 6;
template <class T>
constexpr int kRows<T, 2> = 8;
template <class T>
constexpr int kRows<T, 1> = 8;
#elif defined(DYNROUTE_TARGET_AVX2) || defined(DYNROUTE_TARGET_NEON)
template <class T>
constexpr int kRows<T, 1> = 6;
#else
template <class T>
constexpr int kRows<T, 1> = 2;
#endif

// Where the pixels are read and what happens to a finished sum: constants, so that there are no branches.
template <bool Residual, bool Relu, bool Sums, bool Indirect = false>
struct Epilogue {
  static constexpr bool residual = Residual, relu = Relu, sums = Sums, indirect = Indirect;
};

// The residual's lines into L1 while the products are made: the epilogue comes too late to fetch them from L2.
template <class T, class O, int MR, int P>
DYNROUTE_INLINE void prefetch_residual(const PointwiseArgs<T, O>& args, int row, int column) {
  constexpr int line = 64 / sizeof(T);
  DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) {
    const T* from = args.residual + int64_t(row + i) * args.weights.n + column;
    DYNROUTE_UNROLL for (int j = 0; j < P * kPanel; j += line) __builtin_prefetch(from + j);
  }
}

template <class T, class O, int MR, int P, class E>
DYNROUTE_INLINE void block(const PointwiseArgs<T, O>& args, int row, int panel, const char*& prefetch) {
  using V = Vec<T>;
  static_assert(kPanel % V::width == 0, "a panel is a whole number of vectors");
  constexpr int per_panel = kPanel / V::width, NV = P * per_panel;
  const int k = args.weights.k, n = args.weights.n, column = panel * kPanel;
  const int64_t lda = args.lda;
  const T* a = args.a + row * lda;
  const T* b[P];
  DYNROUTE_UNROLL for (int p = 0; p < P; ++p) b[p] = args.weights.panels + (panel + p) * int64_t(k) * kPanel;

  V sum[MR][NV];
  DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) {
    V shift = V::load(args.weights.shift + column + j * V::width);
    DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) sum[i][j] = shift;
  }
  if constexpr (E::residual) prefetch_residual<T, O, MR, P>(args, row, column);
  const int prefetch_step = args.prefetch ? kPrefetchPerBlock / k : 0;
  // every third row has a pointer of its own: rows 1 and 2 behind it are reached by scaled addressing
  const T* rows[(MR + 2) / 3];
  DYNROUTE_UNROLL for (int i = 0; i < MR; i += 3) rows[i / 3] = a + i * lda;
  for (int kk = 0; kk < k; ++kk) {
    const int64_t offset = E::indirect ? args.offsets[kk] : 0;
    V weight[NV];
    DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) weight[j] = V::load(b[j / per_panel] + (j % per_panel) * V::width);
    DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) {
      const V value = V::set(rows[i / 3][(i % 3) * lda + offset]);
      DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) sum[i][j] = fma(value, weight[j], sum[i][j]);
    }
    if constexpr (!E::indirect) {
      DYNROUTE_UNROLL for (const T*& row_pointer : rows)++ row_pointer;
    }
    DYNROUTE_UNROLL for (const T*& panel_pointer : b) panel_pointer += kPanel;
    __builtin_prefetch(prefetch, 0, 2);
    prefetch += prefetch_step;
  }

  if constexpr (E::sums) {
    DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) {
      T* p = args.sums + column + j * V::width;
      V total = V::load(p);
      DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) total = total + (E::relu ? relu(sum[i][j]) : sum[i][j]);
      total.store(p);
    }
    return;
  }
  const auto finish = [&](V v, int64_t at, auto load_from) DYNROUTE_ALWAYS {
    if constexpr (E::residual) v = v + load_from(args.residual + at);
    return E::relu ? relu(v) : v;
  };
  if (column + P * kPanel <= n) {
    DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) {
      const int64_t at = int64_t(row + i) * n + column;
      DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) {
        const int64_t to = at + j * V::width;
        store(args.out + to, finish(sum[i][j], to, [](const T* p) DYNROUTE_ALWAYS { return load(p); }));
      }
    }
    return;
  }
  DYNROUTE_UNROLL for (int i = 0; i < MR; ++i) {
    const int64_t at = int64_t(row + i) * n + column;
    DYNROUTE_UNROLL for (int j = 0; j < NV; ++j) {
      const int left = min(n - column - j * V::width, V::width);
      if (left <= 0) break;
      const int64_t to = at + j * V::width;
      store(args.out + to, finish(sum[i][j], to, [left](const T* p) DYNROUTE_ALWAYS { return load(p, left); }), left);
    }
  }
}

template <class T, class O, int MR, int P, class E>
__attribute__((noinline)) int rows_of(const PointwiseArgs<T, O>& args, int row, int panel, const char*& prefetch) {
  for (; row + MR <= args.m; row += MR) block<T, O, MR, P, E>(args, row, panel, prefetch);
  return row;
}

template <class T, class O, int P, class E>
void column(const PointwiseArgs<T, O>& args, int panel, const char*& prefetch) {
  int row = rows_of<T, O, kRows<T, P>, P, E>(args, 0, panel, prefetch);
  if constexpr (kRows<T, P> > 4) row = rows_of<T, O, 4, P, E>(args, row, panel, prefetch);
  if constexpr (kRows<T, P> > 2) row = rows_of<T, O, 2, P, E>(args, row, panel, prefetch);
  rows_of<T, O, 1, P, E>(args, row, panel, prefetch);
}

template <class T, class O, class E, int P>
DYNROUTE_INLINE int columns(const PointwiseArgs<T, O>& args, int panel, int panels, const char*& prefetch) {
  if constexpr (kRows<T, P> > 0)
    for (; panel + P <= panels; panel += P) column<T, O, P, E>(args, panel, prefetch);
  return panel;
}

template <class T, class O, class E>
void all_columns(const PointwiseArgs<T, O>& args) {
  const int panels = int(ceil_div(args.weights.n, kPanel));
  // where there is nothing to prefetch, the same hot line is prefetched again
  const char* prefetch = static_cast<const char*>(args.prefetch ? args.prefetch : args.a);
  int panel = columns<T, O, E, 4>(args, 0, panels, prefetch);
  panel = columns<T, O, E, 2>(args, panel, panels, prefetch);
  columns<T, O, E, 1>(args, panel, panels, prefetch);
}

template <class T>
constexpr int kWidest = kRows<T, 4> > 0   ? 4
                        : kRows<T, 2> > 0 ? 2
                                          : 1;

}  // namespace

template <class T>
int64_t prefetch_bytes(int m, int n) {
  return int64_t(kPrefetchPerBlock) * (m / kRows<T, kWidest<T>>)*int(ceil_div(n, kWidest<T> * kPanel));
}
template int64_t prefetch_bytes<float>(int, int);
#if defined(DYNROUTE_TARGET_PORTABLE)
template int64_t prefetch_bytes<double>(int, int);
#endif

template <class T, class O>
void pointwise(const PointwiseArgs<T, O>& args) {
  if (args.offsets && args.relu) all_columns<T, O, Epilogue<false, true, false, true>>(args);
  else if (args.offsets) all_columns<T, O, Epilogue<false, false, false, true>>(args);
  else if (args.sums) all_columns<T, O, Epilogue<false, true, true>>(args);
  else if (args.residual && args.relu) all_columns<T, O, Epilogue<true, true, false>>(args);
  else if (args.residual) all_columns<T, O, Epilogue<true, false, false>>(args);
  else if (args.relu) all_columns<T, O, Epilogue<false, true, false>>(args);
  else all_columns<T, O, Epilogue<false, false, false>>(args);
}

template void pointwise<float, float>(const PointwiseArgs<float, float>&);
template void pointwise<float, bf16>(const PointwiseArgs<float, bf16>&);
#if defined(DYNROUTE_TARGET_PORTABLE)
template void pointwise<double, double>(const PointwiseArgs<double, double>&);
#endif

}  // namespace dynroute::DYNROUTE_TARGET
