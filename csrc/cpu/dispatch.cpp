// Which kernels run here: decided once, from cpuid and DYNROUTE_CPU_ISA. Compiled with baseline flags.
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#include "guard.h"
#include "kernels.h"

namespace dynroute {

namespace portable {
const Kernels<float>& float_kernels();
const Kernels<double>& double_kernels();
}  // namespace portable
#ifdef DYNROUTE_HAS_AVX2
namespace avx2 {
const Kernels<float>& float_kernels();
}
#endif
#ifdef DYNROUTE_HAS_AVX512
namespace avx512 {
const Kernels<float>& float_kernels();
}
#endif
#ifdef DYNROUTE_HAS_NEON
namespace neon {
const Kernels<float>& float_kernels();
}
#endif

namespace {

struct Isa {
  const char* name;
  bool compiled, supported;
  const Kernels<float>& (*kernels)();
};

// Best first.
std::vector<Isa> all_isas() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
#ifdef DYNROUTE_HAS_AVX512
  isas.push_back({"avx512", true,
                  __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("fma"),
                  &avx512::float_kernels});
#else
  isas.push_back({"avx512", false, false, nullptr});
#endif
#ifdef DYNROUTE_HAS_AVX2
  isas.push_back({"avx2", true, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), &avx2::float_kernels});
#else
  isas.push_back({"avx2", false, false, nullptr});
#endif
#ifdef DYNROUTE_HAS_NEON
  isas.push_back({"neon", true, true, &neon::float_kernels});  // part of every 64-bit ARM
#else
  isas.push_back({"neon", false, false, nullptr});
#endif
  isas.push_back({"portable", true, true, &portable::float_kernels});
  return isas;
}

struct Choice {
  Isa isa;
  std::string why;
};

Choice choose() {
  const char* wanted = std::getenv("DYNROUTE_CPU_ISA");
  if (wanted && *wanted) {
    for (const Isa& isa : all_isas()) {
      if (std::strcmp(isa.name, wanted) != 0) continue;
      if (!isa.compiled)
        throw std::runtime_error("DYNROUTE_CPU_ISA: '" + std::string(wanted) +
                                 "' was not compiled into this library (has " + compiled_isas() + ")");
      if (!isa.supported)
        throw std::runtime_error("DYNROUTE_CPU_ISA: this machine does not support '" + std::string(wanted) + "'");
      return {isa, "named by DYNROUTE_CPU_ISA"};
    }
    throw std::runtime_error("DYNROUTE_CPU_ISA: wanted one of portable, avx2, avx512, neon, got '" +
                             std::string(wanted) + "'");
  }
  std::string passed_over;
  for (const Isa& isa : all_isas()) {
    if (isa.compiled && isa.supported) return {isa, passed_over.empty() ? "the best compiled in" : passed_over};
    passed_over += std::string(passed_over.empty() ? "" : ", ") + isa.name +
                   (isa.compiled ? ": not supported here" : ": not compiled in");
  }
  throw std::runtime_error("dynroute: no CPU kernels in this library");
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  void* at_least(size_t bytes) {
    if (bytes > held_) {
      std::free(memory_);
      held_ = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(64, held_);
      if (!memory_) {
        held_ = 0;
        throw std::bad_alloc();
      }
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

template <>
const Kernels<float>& kernels<float>() {
  return choice().isa.kernels();
}
template <>
const Kernels<double>& kernels<double>() {
  return portable::double_kernels();
}

std::string chosen_isa() { return choice().isa.name; }
std::string why_chosen_isa() { return choice().why; }
std::string compiled_isas() {
  std::string list;
  for (const Isa& isa : all_isas())
    if (isa.compiled) list += (list.empty() ? "\"" : ", \"") + std::string(isa.name) + "\"";
  return "[" + list + "]";
}

void* thread_scratch(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.at_least(bytes);
}
void* call_scratch(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.at_least(bytes);
}

}  // namespace dynroute
