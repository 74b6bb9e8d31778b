// Memory for the kernel checks that ends at a page nobody may touch: one element too far is a crash, also where no
// sanitizer runs (under emulation).
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace check {

class Guarded {
 public:
  explicit Guarded(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), used = (bytes + page - 1) / page * page;
    mapped_ = used + page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + used, page, PROT_NONE) != 0) {
      std::perror("guarded memory");
      std::exit(2);
    }
    data_ = base_ + used - bytes;
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  void* data() const { return data_; }

 private:
  char *base_, *data_;
  size_t mapped_;
};

// The same numbers as float and as double; the double ones are what the float ones really are.
class Values {
 public:
  explicit Values(int64_t size)
      : size(size), floats_(size_t(size) * sizeof(float)), doubles_(size_t(size) * sizeof(double)) {}
  template <class T>
  T* data() const {
    return static_cast<T*>(sizeof(T) == sizeof(float) ? floats_.data() : doubles_.data());
  }
  void set(int64_t at, double value) {
    data<float>()[at] = float(value);
    data<double>()[at] = double(float(value));
  }
  void fill(double value) {
    for (int64_t i = 0; i < size; ++i) set(i, value);
  }
  // uniform in [-scale, scale), the same on every machine
  void randomise(double scale) {
    static uint64_t state = 1;
    for (int64_t i = 0; i < size; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      set(i, scale * (double(state >> 33) / double(1u << 30) - 1));
    }
  }
  const int64_t size;

 private:
  Guarded floats_, doubles_;
};

}  // namespace check
