// From a tile's number to the sample and place it belongs to: one launch serves all scales and all listed samples.
#pragma once
#include "params.h"

namespace dynroute::cuda {

struct Work {
  int scale, sample, tile;
};

// Work number `at` of a row's list, when each listed sample has tiles[scale] tiles; false when there is no more.
// Coarse scales come first: they have the fewest and longest tiles, and must not be what a launch ends with.
__device__ inline bool find_work(const Row& row, List list, const int (&tiles)[kScales], int n, int at, Work& work) {
#pragma unroll
  for (int s = kScales - 1; s >= 0; --s) {
    const int here = row.counts[list * kScales + s] * tiles[s];
    if (at < here) {
      work.scale = s;
      work.sample = row.samples[(list * kScales + s) * n + at / tiles[s]];
      work.tile = at % tiles[s];
      return true;
    }
    at -= here;
  }
  return false;
}

}  // namespace dynroute::cuda
