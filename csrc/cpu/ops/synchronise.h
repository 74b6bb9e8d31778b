// The processes whose BatchNorms see one batch: what each of them found is gathered, and merged in the order of ranks,
// so that all go on with the same bits. A gather waits for all: whether there is one may hang on nothing that differs
// between processes, such as gates or the number of samples.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "bindings/gather.h"

namespace dynroute {

// A BatchNorm's forward: how many pixels took part, and their mean and variance, [c] each.
struct Moments {
  int64_t pixels;
  int c;
  double *mean, *variance;
};

// Its backward: pixels, and the sums of the gradient and of its product with the normalised output, [c] each.
struct NormSums {
  int64_t pixels;
  std::vector<double> sum, product;
  NormSums(int64_t pixels_in, int c, const double* sum_in, const double* product_in)
      : pixels(pixels_in), sum(sum_in, sum_in + c), product(product_in, product_in + c) {}
};

class Ranks {
 public:
  Ranks() = default;  // this process alone
  // Frozen statistics need nobody's pixels.
  Ranks(std::string op, std::string group, bool frozen) : op_(std::move(op)) {
    if (frozen || group.empty()) return;
    check_group(op_, group);
    group_ = std::move(group);
  }
  bool alone() const { return group_.empty(); }

  // From each BatchNorm's own moments to those of all processes together (Chan, Golub, LeVeque 1983); one gather.
  void merge(std::initializer_list<Moments*> norms) const {
    if (alone()) return;
    std::vector<double> mine;
    for (const Moments* norm : norms) {
      mine.push_back(double(norm->pixels));
      mine.insert(mine.end(), norm->mean, norm->mean + norm->c);
      for (int i = 0; i < norm->c; ++i) mine.push_back(norm->variance[i] * double(norm->pixels));
    }
    const std::vector<double> all = gather(mine);
    size_t at = 0;
    for (Moments* norm : norms) {
      const int c = norm->c;
      double count = 0;
      std::fill_n(norm->mean, c, 0.0), std::fill_n(norm->variance, c, 0.0);
      for (size_t rank = 0; rank < all.size(); rank += mine.size()) {
        const double *of = all.data() + rank + at, here = of[0];
        if (here == 0) continue;
        const double share = here / (count + here);
        for (int i = 0; i < c; ++i) {
          const double apart = of[1 + i] - norm->mean[i];
          norm->variance[i] += of[1 + c + i] + apart * apart * count * share;  // times the pixels
          norm->mean[i] += apart * share;
        }
        count += here;
      }
      for (int i = 0; i < c; ++i) norm->variance[i] /= std::max(count, 1.0);
      norm->pixels = int64_t(count), at += 1 + 2 * size_t(c);
    }
  }

  // From each BatchNorm's own sums to those of all processes; one gather.
  void add(std::initializer_list<NormSums*> norms) const {
    if (alone()) return;
    std::vector<double> mine;
    for (const NormSums* norm : norms) {
      mine.push_back(double(norm->pixels));
      mine.insert(mine.end(), norm->sum.begin(), norm->sum.end());
      mine.insert(mine.end(), norm->product.begin(), norm->product.end());
    }
    const std::vector<double> all = gather(mine);
    size_t at = 0;
    for (NormSums* norm : norms) {
      const size_t c = norm->sum.size();
      std::vector<double> total(1 + 2 * c, 0.0);
      for (size_t rank = 0; rank < all.size(); rank += mine.size())
        for (size_t i = 0; i < total.size(); ++i) total[i] += all[rank + at + i];
      norm->pixels = int64_t(total[0]);
      std::copy_n(total.data() + 1, c, norm->sum.begin());
      std::copy_n(total.data() + 1 + c, c, norm->product.begin());
      at += total.size();
    }
  }

 private:
  // [processes][mine]
  std::vector<double> gather(const std::vector<double>& mine) const {
    std::vector<double> all(mine.size() * size_t(processes_of(op_, group_)));
    dynroute::gather(op_, group_, mine.data(), int64_t(mine.size()), all.data(), -1);
    return all;
  }

  std::string op_, group_;
};

}  // namespace dynroute
