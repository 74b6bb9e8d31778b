// A list of launches as bytes, as it passes through Python: records one after the other, each a header and its params.
#pragma once
#include <cstdint>

#include "cuda/kernels/params.h"

namespace dynroute::cuda {

struct Record {
  char kernel[16];  // its name, a zero at least behind
  LaunchShape shape;
  int params;  // bytes that follow the header, padding to the next record's 8-byte boundary included
};
static_assert(sizeof(Record) == 32, "dynroute/runtime/cuda/launch_list.py reads it");

}  // namespace dynroute::cuda
