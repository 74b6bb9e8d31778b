// One depthwise 3x3 + pointwise stage, over the open samples of up to four scales, or over all samples (the stem).
//
// Work: items are tiles of pixels (sepconv_item.cuh), on blocks of 256 threads that take every gridDim.x-th one, coarse
// scales first. Two blocks to a multiprocessor (128 registers; half of its shared memory each) hide what one waits for,
// and an item is found, through three dependent loads, while the halo of the one before is on its way.
// The stem's stages, and of a row's cells all but the last, which `stage_paths` does.
#include "sepconv_item.cuh"

namespace dynroute::cuda {

template <class T>
__device__ inline void sepconv(const SepconvParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ SepconvItem items[2];
  static_assert(sizeof(items) <= kSepconvStatic, "the host knows of it");
  if (threadIdx.x == 0) find_item<T>(p, blockIdx.x, -1, items[0]);
  for (int turn = 0;; turn ^= 1) {
    __syncthreads();  // the item is known, and the last one's results, which lay where the halo goes, are read
    const SepconvItem& item = items[turn];
    if (item.number < 0) return;
    sepconv_item<T, 2>(p, item, memory, [&] { find_item<T>(p, item.number + gridDim.x, item.scale, items[turn ^ 1]); });
  }
}

}  // namespace dynroute::cuda

using namespace dynroute::cuda;
DYNROUTE_KERNEL(sepconv, SepconvParams, kSepconvThreads, kSepconvResident)
