// Large pages for large buffers: fewer page faults in fresh memory, and maps that the TLB can hold.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dynroute {

constexpr size_t kHugePage = size_t(2) << 20;

// A wish, to be made before the memory is first touched; no system has to grant it.
inline void advise_huge([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096;
  if (bytes < 2 * kHugePage) return;
  const uintptr_t begin = (uintptr_t(data) + page - 1) / page * page, end = (uintptr_t(data) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Has each large page of fresh memory made by one thread, in the given number of tasks: two that write to it first at
// the same time would both clear it, and one in vain. What the memory holds is lost.
inline int touch_tasks(size_t bytes) { return int(bytes / kHugePage) + 2; }  // whole pages, and two parts at most
inline void touch(char* data, size_t bytes, int task) {
  const uintptr_t begin = uintptr_t(data), end = begin + bytes;
  const uintptr_t page = begin / kHugePage * kHugePage + uintptr_t(task) * kHugePage;
  const uintptr_t first = page < begin ? begin : page;
  if (first < end) *reinterpret_cast<volatile char*>(first) = 0;
}

}  // namespace dynroute
