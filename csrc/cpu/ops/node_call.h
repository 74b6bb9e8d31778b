// What a call of node_train is given, checked, and what it means for each sample; for both directions.
#pragma once
#include <memory>

#include "contract/routing.h"
#include "train_stages.h"

namespace dynroute {

// A node's shapes, and the settings of a call.
struct NodeShape {
  int n, c, h, w, stages, up_c, down_c;  // up_c, down_c: 0 where there is no such path
  bool skip, frozen;
  ScalarType raw;  // of raw outputs
  double bridge, eps;
  Ranks ranks;
  int down_h() const { return strided(h, 2); }
  int down_w() const { return strided(w, 2); }
  int64_t up_size() const { return int64_t(h) * w * up_c; }  // of a sample
  int64_t down_size() const { return int64_t(down_h()) * down_w() * down_c; }
};

// What alphas [N, 3] mean for each sample: keep = hidden * H + x * X, and the paths' weights; which of it is computed.
template <class T>
struct Shares {
  std::vector<T> hidden, x, up, down;
  std::unique_ptr<bool[]> open, up_open, down_open;
  std::vector<int> up_samples, down_samples;
  bool passes = false;  // whether any sample's X passes

  Shares(const Tensor& alphas_in, const NodeShape& shape)
      : hidden(size_t(shape.n)),
        x(size_t(shape.n)),
        up(size_t(shape.n)),
        down(size_t(shape.n)),
        open(new bool[size_t(shape.n)]),
        up_open(new bool[size_t(shape.n)]),
        down_open(new bool[size_t(shape.n)]) {
    const Values<T> values(alphas_in);
    const T *alphas = values.data(), bridge = T(shape.bridge);
    const bool skip = shape.skip, has_up = shape.up_c > 0, has_down = shape.down_c > 0;
    for (int i = 0; i < shape.n; ++i, alphas += kPaths) {
      const size_t at = size_t(i);
      const bool closed = is_closed(alphas);
      open[at] = !skip || !closed;
      up_open[at] = has_up && open[at] && (!skip || path_is_open(alphas[kUp]));
      down_open[at] = has_down && open[at] && (!skip || path_is_open(alphas[kDown]));
      up[at] = alphas[kUp], down[at] = alphas[kDown];
      hidden[at] = closed && bridge == 0 ? T(0) : alphas[kKeep];
      const T sum = alphas[kUp] + alphas[kKeep] + alphas[kDown];
      x[at] = bridge > 0 ? std::max(1 - sum / bridge, T(0)) : T(closed);
      passes |= x[at] != 0;
      if (up_open[at]) up_samples.push_back(i);
      if (down_open[at]) down_samples.push_back(i);
    }
  }
};

inline NodeShape node_shape(const std::string& op, const Tensor& x, const NodeTensors& t, const TrainTypes& types,
                            double bridge, bool skip, bool frozen, const std::string& group, double eps) {
  return {int(x.size(0)), int(x.size(1)), int(x.size(2)), int(x.size(3)), t.stages(), t.up_c(),           t.down_c(),
          skip,           frozen,         types.raw,      bridge,         eps,        {op, group, frozen}};
}

// Memory for the packed weights of its chain and its paths.
template <class T>
int64_t packed_node_size(const NodeTensors& t, const StageTensors& chain, bool backward) {
  int64_t size = Chain<T>::packed_size(chain, backward);
  for (const auto* path : {&t.up, &t.down})
    if (*path) size += Chain<T>::product_size(**path);
  return size;
}

// The BatchNorm of a path.
template <class T>
Norm<T> path_norm(Chain<T>& chain, const NodeTensors& t, size_t at, int c) {
  Norm<T> norm = {chain.values(t.gamma[at]), chain.values(t.beta[at]), nullptr, nullptr, c};
  if (t.running_mean) norm.mean = chain.values((*t.running_mean)[at]);
  if (t.running_var) norm.variance = chain.values((*t.running_var)[at]);
  return norm;
}

template <class T>
struct Affine {
  std::vector<T> scale, shift;
  explicit Affine(int c) : scale(size_t(c)), shift(size_t(c)) {}
};

template <class T>
TrainHidden<T> hidden_of(const Chain<T>& chain, const Raw<T>& raw, const T* factor) {
  const int last = chain.stages - 1;
  TrainHidden<T> made = {};
  made.x = chain.x.template const_data_ptr<T>(), made.y = raw.from(last * chain.raw_size());
  made.scale = chain.scale.data() + last * chain.c, made.shift = chain.shift.data() + last * chain.c;
  made.factor = factor, made.samples = chain.samples.data();
  made.n = chain.open_samples(), made.h = chain.h, made.w = chain.w, made.c = chain.c;
  return made;
}

}  // namespace dynroute
