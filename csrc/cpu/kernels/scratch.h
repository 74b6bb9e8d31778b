// Memory of a thread, kept from call to call. Kernel checks without the library bring their own.
#pragma once
#include <cstddef>

namespace dynroute {

// At least `bytes` of this thread's own memory, 64-byte aligned, kept between calls. Not zeroed.
void* thread_scratch(size_t bytes);

// The same, apart from it: what a call packs its weights into before its tasks run. Fresh memory would cost page faults
// of the order of the work on small maps.
void* call_scratch(size_t bytes);

}  // namespace dynroute
