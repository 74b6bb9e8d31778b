// What AddressSanitizer does not see by itself: borders inside memory that is handed out in parts, and masked vector
// loads and stores, which are builtins to it (tile loads and stores of AMX it does not see at all). Costs nothing and
// does nothing in a library built without it (see DYNROUTE_SANITIZE in CMakeLists.txt).
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace dynroute::guard {

#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kFloats = 16;  // left free behind each part
inline void forbid(const void* begin, size_t bytes) { __asan_poison_memory_region(begin, bytes); }
inline void allow(const void* begin, size_t bytes) { __asan_unpoison_memory_region(begin, bytes); }
// for an access that is not instrumented: an instrumented one to its first forbidden byte, if there is one
__attribute__((always_inline)) inline void reads(const void* begin, size_t bytes) {
  if (const void* bad = __asan_region_is_poisoned(const_cast<void*>(begin), bytes))
    (void)*static_cast<const volatile char*>(bad);
}
__attribute__((always_inline)) inline void writes(void* begin, size_t bytes) {
  if (void* bad = __asan_region_is_poisoned(begin, bytes)) *static_cast<volatile char*>(bad) = 0;
}
#else
constexpr int64_t kFloats = 0;
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
__attribute__((always_inline)) inline void reads(const void*, size_t) {}
__attribute__((always_inline)) inline void writes(void*, size_t) {}
#endif

// Allows all of a memory again when its user is done with it.
class Allowed {
 public:
  Allowed(const void* begin, size_t bytes) : begin_(begin), bytes_(bytes) {}
  ~Allowed() { allow(begin_, bytes_); }
  Allowed(const Allowed&) = delete;
  Allowed& operator=(const Allowed&) = delete;

 private:
  const void* begin_;
  size_t bytes_;
};

}  // namespace dynroute::guard
