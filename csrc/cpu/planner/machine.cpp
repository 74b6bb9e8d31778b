#include "machine.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace dynroute {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "48K", "2048K", "32M" -> bytes; 0 where it cannot be read.
int64_t parse_size(const std::string& text) {
  char* end = nullptr;
  const int64_t value = std::strtoll(text.c_str(), &end, 10);
  if (end == text.c_str()) return 0;
  return value * (*end == 'K' ? 1 << 10 : *end == 'M' ? 1 << 20 : 1);
}

// The data cache of a level on Linux: /sys has it on x86 and ARM alike; 0 elsewhere.
int64_t cache_bytes(int level) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    if (first_line(folder + "level") == std::to_string(level) && first_line(folder + "type") != "Instruction")
      return parse_size(first_line(folder + "size"));
  }
  return 0;
}

int64_t or_else(int64_t bytes, int64_t common) { return bytes > 0 ? bytes : common; }

}  // namespace

Machine read_machine(const char* isa) {
  Machine machine = {};
  machine.l1_bytes = or_else(cache_bytes(1), 32 << 10);
  machine.l2_bytes = or_else(cache_bytes(2), 1 << 20);
  machine.l3_bytes = or_else(cache_bytes(3), 8 << 20);
  const bool tiles = std::strcmp(isa, "amx") == 0, wide = tiles || std::strcmp(isa, "avx512") == 0,
             narrow = std::strcmp(isa, "avx2") == 0;
  machine.flops = tiles ? 280 : wide ? 180 : narrow ? 90 : 30;
  machine.l2_bytes_per_ns = wide ? 60 : 40;
  machine.memory_bytes_per_ns = 10;
  return machine;
}

}  // namespace dynroute
