// How blocks of one launch learn that others are done: by counters in device memory.
//
// Memory order. A block's writes, its barrier, then one thread's increment with release: what any thread of the block
// wrote before is in L2 when the counter has gone up. Who has seen the counter reads that data past L1, which may hold
// what lay there before: with __ldcg or cp.async.cg, both of which ask L2. Those reads cannot be early: they stand
// behind a barrier that the thread which saw the counter reaches by a branch on its value. So no acquire is needed, and
// none is made: the instruction would throw away all of the multiprocessor's L1, and a full fence (__threadfence) would
// do that on the writing side as well, for every item that is finished.
#pragma once
#include "primitives.cuh"

namespace dynroute::cuda {

// One more has arrived. By one thread, after the block met.
__device__ inline void arrive(int* counter) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(__cvta_generic_to_global(counter)) : "memory");
}

// Until `count` have arrived. By one thread; the block has to meet before it reads.
__device__ inline void wait_for(const int* counter, int count) {
  for (;;) {
    int arrived;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];"
                 : "=r"(arrived)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    if (arrived >= count) return;
    __nanosleep(64);
  }
}

// Called by the whole block; true in the block that arrives as the last of `expected`.
__device__ inline bool arrive_last(int* counter, int expected, int* shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    int before;
    asm volatile("atom.release.gpu.global.add.s32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    *shared = before == expected - 1;
  }
  __syncthreads();
  return *shared;
}

}  // namespace dynroute::cuda
