// What a binding needs of the CUDA runtime, without its headers.
#pragma once
#include <cstddef>

#include "cuda/kernels/params.h"

namespace dynroute::cuda {

// Launches records number `first` to `last` - 1 of a list (records.h) on a stream. `init_call`, record 0, is given
// `io`. Throws std::runtime_error: a record that is not one, an unknown kernel, or what CUDA says.
void run_records(const unsigned char* records, size_t bytes, DType dtype, int64_t first, int64_t last, const Io& io,
                 void* stream);

DeviceLimits device_limits(int device);

}  // namespace dynroute::cuda
