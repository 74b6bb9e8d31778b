// A list of launches, and as bytes, as it passes through Python: records one after the other, each a header and its
// params.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda/kernels/params.h"

namespace dynroute::cuda {

struct Launch {
  const char* kernel;  // without the suffix of its storage type
  LaunchShape shape;
  std::vector<unsigned char> params;  // of the kernel's struct
};

struct Record {
  char kernel[32];  // its name, a zero at least behind
  LaunchShape shape;
  int params;  // bytes that follow the header, padding to the next record's 8-byte boundary included
};
static_assert(sizeof(Record) == 48, "dynroute/runtime/cuda/launch_list.py reads it");

inline std::vector<unsigned char> as_records(const std::vector<Launch>& launches) {
  std::vector<unsigned char> bytes;
  for (const Launch& launch : launches) {
    Record record = {};
    std::strncpy(record.kernel, launch.kernel, sizeof(record.kernel) - 1);
    record.shape = launch.shape;
    record.params = int(round_up(launch.params.size(), size_t(8)));
    const size_t at = bytes.size();
    bytes.resize(at + sizeof(record) + size_t(record.params));
    std::memcpy(bytes.data() + at, &record, sizeof(record));
    std::memcpy(bytes.data() + at + sizeof(record), launch.params.data(), launch.params.size());
  }
  return bytes;
}

}  // namespace dynroute::cuda
