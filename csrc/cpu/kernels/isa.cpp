// Which kernels run here: decided once, from cpuid and DYNROUTE_CPU_ISA. Compiled with baseline flags.
#include <cstdlib>
#include <stdexcept>
#include <vector>
#ifdef DYNROUTE_HAS_AMX
#include <cpuid.h>
#endif
#if defined(DYNROUTE_HAS_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace dynroute {

// A target's tables of kernels (table.cpp).
#define DYNROUTE_TABLES(target)           \
  namespace target {                      \
  const Kernels<float>& float_kernels();  \
  const Kernels<bf16>& bf16_kernels();    \
  }
DYNROUTE_TABLES(portable)
namespace portable {
const Kernels<double>& double_kernels();
}
#ifdef DYNROUTE_HAS_AVX2
DYNROUTE_TABLES(avx2)
#endif
#ifdef DYNROUTE_HAS_AVX512
DYNROUTE_TABLES(avx512)
#endif
#ifdef DYNROUTE_HAS_AMX
DYNROUTE_TABLES(amx)
#endif
#ifdef DYNROUTE_HAS_NEON
DYNROUTE_TABLES(neon)
#endif

namespace {

struct Isa {
  const char* name;
  bool compiled;
  const char* missing;  // why this machine does not run it, or null
  const Kernels<float>& (*kernels)();
  const Kernels<bf16>& (*bf16_kernels)();
};

constexpr const char* kNotHere = "not supported here";

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
}
#endif

#ifdef DYNROUTE_HAS_AMX
// Tiles are large state: Linux wants to be asked before a process may use them, and then allows all its threads.
const char* why_no_amx() {
  unsigned a, b, c, d;
  const auto bit = [](unsigned bits, int at) { return (bits >> at & 1) != 0; };
  if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !bit(d, 22) || !bit(d, 24) ||
      !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !bit(a, 5))
    return "this processor lacks amx-tile, amx-bf16 or avx512_bf16";
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM; older headers have no name for it
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? nullptr : "the system does not permit tiles";
#else
  return "tiles are asked for on Linux alone";
#endif
}
#endif

// Best first.
std::vector<Isa> all_isas() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
#ifdef DYNROUTE_HAS_AMX
  static const char* const why_not = why_no_amx();  // asked once
  isas.push_back({"amx", true, why_not, &amx::float_kernels, &amx::bf16_kernels});
#else
  isas.push_back({"amx", false, nullptr, nullptr, nullptr});
#endif
#ifdef DYNROUTE_HAS_AVX512
  isas.push_back({"avx512", true, has_avx512() ? nullptr : kNotHere, &avx512::float_kernels, &avx512::bf16_kernels});
#else
  isas.push_back({"avx512", false, nullptr, nullptr, nullptr});
#endif
#ifdef DYNROUTE_HAS_AVX2
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  isas.push_back({"avx2", true, has_avx2 ? nullptr : kNotHere, &avx2::float_kernels, &avx2::bf16_kernels});
#else
  isas.push_back({"avx2", false, nullptr, nullptr, nullptr});
#endif
#ifdef DYNROUTE_HAS_NEON
  isas.push_back({"neon", true, nullptr, &neon::float_kernels, &neon::bf16_kernels});  // part of every 64-bit ARM
#else
  isas.push_back({"neon", false, nullptr, nullptr, nullptr});
#endif
  isas.push_back({"portable", true, nullptr, &portable::float_kernels, &portable::bf16_kernels});
  return isas;
}

struct Choice {
  Isa isa;
  std::string why;
};

Isa named(const std::string& wanted, const std::string& what) {
  for (const Isa& isa : all_isas()) {
    if (wanted != isa.name) continue;
    if (!isa.compiled)
      throw std::runtime_error(what + ": '" + wanted + "' was not compiled into this library (has " + compiled_isas() +
                               ")");
    if (isa.missing)
      throw std::runtime_error(what + ": this machine does not support '" + wanted + "'" +
                               (isa.missing == kNotHere ? "" : std::string(": ") + isa.missing));
    return isa;
  }
  throw std::runtime_error(what + ": wanted one of portable, avx2, avx512, amx, neon, got '" + wanted + "'");
}

Choice choose() {
  const char* wanted = std::getenv("DYNROUTE_CPU_ISA");
  if (wanted && *wanted) return {named(wanted, "DYNROUTE_CPU_ISA"), "named by DYNROUTE_CPU_ISA"};
  std::string passed_over;
  for (const Isa& isa : all_isas()) {
    if (isa.compiled && !isa.missing) return {isa, passed_over.empty() ? "the best compiled in" : passed_over};
    passed_over += std::string(passed_over.empty() ? "" : ", ") + isa.name + ": " +
                   (isa.compiled ? isa.missing : "not compiled in");
  }
  throw std::runtime_error("dynroute: no CPU kernels in this library");
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return choice().isa.kernels();
}
template <>
const Kernels<bf16>& kernels<bf16>() {
  return choice().isa.bf16_kernels();
}
template <>
const Kernels<double>& kernels<double>() {
  return portable::double_kernels();
}

template <>
const Kernels<float>& kernels_without_tiles<float>() {
#ifdef DYNROUTE_HAS_AVX512
  if (chosen_isa() == "amx") return avx512::float_kernels();
#endif
  return kernels<float>();
}
template <>
const Kernels<double>& kernels_without_tiles<double>() {
  return kernels<double>();
}

const Kernels<float>& kernels_of(const std::string& isa, const std::string& what) { return named(isa, what).kernels(); }

std::string chosen_isa() { return choice().isa.name; }
bool weights_in_tiles(int k, int n) { return chosen_isa() == "amx" && in_tiles(k, n); }
std::string why_chosen_isa() { return choice().why; }
std::string compiled_isas() {
  std::string list;
  for (const Isa& isa : all_isas())
    if (isa.compiled) list += (list.empty() ? "\"" : ", \"") + std::string(isa.name) + "\"";
  return "[" + list + "]";
}

}  // namespace dynroute
