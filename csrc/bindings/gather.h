// How the libraries reach other processes: a function of Python's, as that has them.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

#include "checks.h"

namespace dynroute {

// Fills `all` with the `count` values of every process of a group, in the order of ranks, and returns how many
// processes that is, 0 on failure; with `all` null it only says how many. device: of a GPU where the values lie, whose
// current stream the gather belongs to; -1: they are in the host's memory. Python sets it (set_gather,
// cuda_set_gather).
using GatherFunction = int (*)(const char* group, const double* mine, int64_t count, double* all, int device);
inline std::atomic<GatherFunction> gather_function{nullptr};  // of this library

inline void set_gather_function(int64_t address) {
  gather_function = reinterpret_cast<GatherFunction>(static_cast<intptr_t>(address));
}

inline void check_group(const std::string& op, const std::string& group) {
  require(group.empty() || gather_function.load() != nullptr,
          op + ": group: wanted none, as nobody has called set_gather, got '" + group + "'");
}

// How many processes a group has; throws where nobody knows.
inline int processes_of(const std::string& op, const std::string& group) {
  check_group(op, group);
  const int processes = gather_function.load()(group.c_str(), nullptr, 0, nullptr, -1);
  require(processes > 0, op + ": group: could not gather from the processes of '" + group + "'");
  return processes;
}
inline void gather(const std::string& op, const std::string& group, const double* mine, int64_t count, double* all,
                   int device) {
  require(gather_function.load()(group.c_str(), mine, count, all, device) > 0,
          op + ": group: could not gather from the processes of '" + group + "'");
}

}  // namespace dynroute
