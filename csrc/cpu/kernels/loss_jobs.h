// What the kernel of upsampled_cross_entropy is told: the sum of the cross entropies of logits that are upsampled as
// they are read, and its gradient with respect to the logits as they lie.
//
// Rows of the full size fall into gaps: those of gap i lie between the centres of the low-resolution rows i - 1 and i,
// are a blend of these two alone, and give gradients to no others. A sample has h + 1 gaps, the outer two of which lie
// beyond the first and the last centre, where a blend is of one row with itself.
#pragma once
#include <cstdint>

#include "contract/geometry.h"

namespace dynroute {

// A task is a band of a sample's gaps [first, last) and owns the gradient's rows [first, last). What it gives to row
// first - 1, which is another's, goes to its edge, to be added when all tasks are done: nothing is made twice, and
// every row is one sum in one order.
template <class T>
struct UpsampledLossJob {
  const T* logits;        // [n, h, w, k]
  const int64_t* labels;  // [n, out_h, out_w]
  const T* weight;        // [k], of classes; null: 1
  T* gradient;            // like logits; null: not wanted
  T* edges;               // [n, bands][w, k]
  double* losses;         // [n, bands]: their sums
  int64_t* strays;        // [n, bands]: a label that is neither a class nor ignored; ignore_index: there is none
  int n, h, w, k, factor, out_h, out_w;
  int64_t ignore_index;
};

namespace cuts {
// By the height alone, so that a sample's gradient is the same bits in any batch.
constexpr int loss_gaps(int h) { return int(ceil_div(h + 1, 16)); }
constexpr int loss_bands(int h) { return int(ceil_div(h + 1, loss_gaps(h))); }
}  // namespace cuts

}  // namespace dynroute
