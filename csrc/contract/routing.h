// The rules of routing, for every device (SPEC, "Node"): what closes a node and a path, what a node hands on, and what
// the nodes of the next row are made of. NaN closes nothing: it goes on to the logits, where it is seen.
// dynroute/space/routing.py says the same in Python.
#pragma once
#include "contract/space.h"

namespace dynroute {

template <class T>
DYNROUTE_DEVICE_TOO constexpr bool is_closed(const T* alphas /* [3], 0 where no path is */) {
  return alphas[kUp] + alphas[kKeep] + alphas[kDown] < T(kThreshold);
}
template <class T>
DYNROUTE_DEVICE_TOO constexpr bool path_is_open(T alpha) {
  return !(alpha <= T(kThreshold));
}

// What its alphas make of a present node.
template <class T>
struct Route {
  bool closed;
  T weight[kPaths];  // of each outgoing path; 0: closed or none
};
template <class T>
DYNROUTE_DEVICE_TOO constexpr Route<T> route_of(const T* alphas /* [3] */) {
  Route<T> route = {is_closed(alphas), {}};
  for (int path = 0; path < kPaths; ++path)
    route.weight[path] = !route.closed && path_is_open(alphas[path]) ? alphas[path] : T(0);
  if (route.closed) route.weight[kKeep] = 1;  // X itself
  return route;
}

// Whether a node hands something on by a path, which makes the node that the path leads to present: by keep where it is
// present itself; by up and down where it is open, even if that path's own alpha is 0.
DYNROUTE_DEVICE_TOO constexpr bool hands_on(int path, bool exists, bool present, bool closed) {
  return exists && present && (path == kKeep || !closed);
}

// A node's X: the sum of what its sources hand on, by the path that leads here.
template <class T>
struct Inputs {
  bool present;  // of an absent node nothing else is defined
  bool aliased;  // X is the keep source where it lies: it is alone, with weight 1
  T weight[kPaths];  // 0: not to be read
};
// arrives: whether a source hands something on by each path; weight: the source's own, 0 where nothing arrives.
template <class T>
DYNROUTE_DEVICE_TOO constexpr Inputs<T> inputs_of(const bool (&arrives)[kPaths], const T (&weight)[kPaths]) {
  return {arrives[kUp] || arrives[kKeep] || arrives[kDown],
          weight[kKeep] == 1 && weight[kDown] == 0 && weight[kUp] == 0,
          {weight[kUp], weight[kKeep], weight[kDown]}};
}

}  // namespace dynroute
