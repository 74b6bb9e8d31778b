#include "scratch.h"

#include <cstdlib>
#include <new>

#include "contract/geometry.h"
#include "guard.h"
#include "memory.h"

namespace dynroute {
namespace {

class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  void* at_least(size_t bytes) {
    if (bytes > held_) {
      std::free(memory_);
      held_ = size_t(round_up(int64_t(bytes), 4096));
      memory_ = std::aligned_alloc(64, held_);
      if (!memory_) {
        held_ = 0;
        throw std::bad_alloc();
      }
      advise_huge(memory_, held_);
    }
    guard::allow(memory_, bytes);
    guard::forbid(static_cast<char*>(memory_) + bytes, held_ - bytes);
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t held_ = 0;
};

}  // namespace

void* thread_scratch(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.at_least(bytes);
}
void* call_scratch(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.at_least(bytes);
}

}  // namespace dynroute
