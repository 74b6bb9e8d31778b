#include "trace.h"

namespace dynroute {

void set_tracing(bool on) {
  if (on) trace.clear();
  trace.on = on;
}

std::vector<TraceEntry> traced() {
  std::vector<TraceEntry> entries;
  for (int slot = 0; slot < Trace::kSlots; ++slot)
    if (trace.tasks[slot] > 0)
      entries.push_back({kWorkNames[slot / kScales], slot % kScales, trace.nanoseconds[slot], trace.tasks[slot]});
  return entries;
}

}  // namespace dynroute
