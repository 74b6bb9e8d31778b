// What a binding needs of the CUDA runtime, without its headers.
#pragma once
#include <cstddef>
#include <vector>

#include "records.h"

namespace dynroute::cuda {

// Launches records number `first` to `last` - 1 of a list (records.h) on a stream of `device`, the current one.
// `init_call`, record 0, is given `io`. Throws std::runtime_error: a record that is not one, an unknown kernel, or what
// CUDA says.
void run_records(const unsigned char* records, size_t bytes, int device, DType dtype, int64_t first, int64_t last,
                 const Io& io, void* stream);

// The same for launches that have not been bytes.
void run_launches(const std::vector<Launch>& launches, int device, DType dtype, void* stream);

DeviceLimits device_limits(int device);  // asked once for each device

// While `stream` is being captured: `release(held)` is called once neither the graph nor what was made of it is left,
// on a thread of CUDA's that must not call CUDA. False, and nothing is held, where it is not being captured.
bool hold_for_graph(void* stream, void* held, void (*release)(void*));

}  // namespace dynroute::cuda
