// What the gradient of an aggregation's sources and alphas is told, and how it is cut.
#pragma once
#include "tasks_of_jobs.h"

namespace dynroute {

// Of one sample. A source's gradient is its weight times grad, or times the bilinear x2's adjoint of grad for up; its
// alpha's is the sum of the source times the same without the weight, and 0 where the weight is 0. A task is a band of
// pairs of rows, a row of up each, and leaves its own sums.
template <class T>
struct AggregateBackwardJob {
  const T* grad;                        // [h, w, c]
  Sources<T> sources;                   // read for the alphas' gradients only: null where none is wanted
  T *grad_down, *grad_keep, *grad_up;   // like the sources; null: not wanted
  double* sums;                         // [tasks][kPaths], in the order of alphas; null where no alpha's is wanted
  int h, w, c;
};

namespace cuts {

inline int pair_rows(int w, int c) { return at_least(kAggregateSize / (2 * int64_t(w) * c), 1); }
inline int pair_tasks(int h, int w, int c) { return int(ceil_div(ceil_div(h, 2), pair_rows(w, c))); }

}  // namespace cuts
}  // namespace dynroute
