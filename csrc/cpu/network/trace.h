// Where a run's time goes: nanoseconds and tasks by kind of work and scale.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "contract/space.h"
#include "cpu/planner/api.h"

namespace dynroute {

// What a task belongs to: a kind of work, at a scale of the network.
enum class WorkKind : uint8_t {
  kOther,
  kStem,
  kAggregate,
  kGate,
  kCell,
  kPath,
  kMerge,
  kPredictor,
  kUpsample,
  kMemory,
  kCount
};
constexpr const char* kWorkNames[] = {"other", "stem",  "aggregate", "gate",     "cell",
                                      "path",  "merge", "predictor", "upsample", "memory"};
static_assert(sizeof(kWorkNames) / sizeof(kWorkNames[0]) == size_t(WorkKind::kCount), "a name for each kind");

struct Tag {
  WorkKind work = WorkKind::kOther;
  uint8_t scale = 0;
};

// Added up over all threads while tracing is on.
struct Trace {
  static constexpr int kSlots = int(WorkKind::kCount) * kScales;
  std::atomic<bool> on{false};
  std::atomic<int64_t> nanoseconds[kSlots] = {}, tasks[kSlots] = {};
  void clear() {
    for (int slot = 0; slot < kSlots; ++slot) nanoseconds[slot] = 0, tasks[slot] = 0;
  }
  void add(Tag tag, int64_t spent) {
    const int slot = int(tag.work) * kScales + tag.scale;
    nanoseconds[slot].fetch_add(spent, std::memory_order_relaxed);
    tasks[slot].fetch_add(1, std::memory_order_relaxed);
  }
};
inline Trace trace;

// Since tracing was last switched on.
struct TraceEntry {
  std::string work;
  int scale;
  int64_t nanoseconds, tasks;
};
DYNROUTE_API void set_tracing(bool on);
DYNROUTE_API std::vector<TraceEntry> traced();

}  // namespace dynroute
