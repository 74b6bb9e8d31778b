// The tile scheduler: from a tile's number to its scale, its sample and its place there. One launch serves all scales
// and all listed samples, and its blocks take every gridDim.x-th tile.
#pragma once
#include "params.h"

namespace dynroute::cuda {

struct ScheduledTile {
  int scale, sample, tile;
};

// Tile number `at` of a row's list, when each listed sample has tiles[scale] tiles; false when there is no more.
// Coarse scales come first: they have the fewest and longest tiles, and must not be what a launch ends with.
// tiles(s): an int, or, where many threads ask, a Divisor.
template <class Tiles>
__device__ inline bool find_tile(const Row& row, List list, const Tiles& tiles, int n, int at, ScheduledTile& found) {
#pragma unroll
  for (int s = kScales - 1; s >= 0; --s) {
    const auto& of_sample = tiles(s);
    const int here = row.counts[list * kScales + s] * of_sample;
    if (at < here) {
      found.scale = s;
      found.sample = row.samples[(list * kScales + s) * n + at / of_sample];
      found.tile = at % of_sample;
      return true;
    }
    at -= here;
  }
  return false;
}

}  // namespace dynroute::cuda
