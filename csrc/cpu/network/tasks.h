// Task lists and the loop that runs them. Threads come from outside (torch's pool, in this project) through Parallel.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <new>
#include <type_traits>
#include <vector>

#include "trace.h"

namespace dynroute {

// Runs body() on up to `threads` threads at once and returns when all have returned.
struct Parallel {
  virtual ~Parallel() = default;
  virtual int threads() const = 0;
  virtual void each(int threads, const std::function<void()>& body) const = 0;
};

// Jobs whose tasks may run at the same time, in any order. A job is kept by value in the list's own memory, which it
// holds on to: filling a list again allocates nothing.
class TaskList {
 public:
  template <class Job>
  void add(void (*kernel)(const Job&, int), const Job& job, int tasks, Tag tag = {}) {
    add([kernel, job](int task) { kernel(job, task); }, tasks, tag);
  }
  template <class Run>
  void add(const Run& run, int tasks, Tag tag = {}) {
    static_assert(sizeof(Run) <= kBytes && std::is_trivially_copyable_v<Run>, "a job is a small plain value");
    if (tasks <= 0) return;
    ranges_.emplace_back();
    Range& range = ranges_.back();
    range.end = total_ += tasks;
    range.begin = range.end - tasks;
    range.tag = tag;
    range.call = [](const void* job, int task) { (*static_cast<const Run*>(job))(task); };
    new (range.job) Run(run);
  }
  int64_t total() const { return total_; }
  void run(int64_t task) const {
    size_t low = 0, high = ranges_.size() - 1;
    while (low < high) {
      const size_t middle = (low + high) / 2;
      if (task < ranges_[middle].end) high = middle;
      else low = middle + 1;
    }
    const Range& range = ranges_[low];
    if (!trace.on.load(std::memory_order_relaxed)) return range.call(range.job, int(task - range.begin));
    const auto start = std::chrono::steady_clock::now();
    range.call(range.job, int(task - range.begin));
    trace.add(range.tag, std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count());
  }
  void clear() { ranges_.clear(), total_ = 0; }

 private:
  static constexpr size_t kBytes = 640;
  struct Range {
    int64_t begin, end;
    Tag tag;
    void (*call)(const void* job, int task);
    alignas(16) unsigned char job[kBytes];
  };
  std::vector<Range> ranges_;
  int64_t total_ = 0;
};

// The index of the task that a Runner leaves out, counted over its lifetime; -1: none. For tests of the counters.
inline std::atomic<int64_t> debug_skipped_task{-1};

// Runs task lists one after the other. Threads pull tasks from a counter: which thread runs which task is open, what a
// task computes is not.
class Runner {
 public:
  explicit Runner(const Parallel& parallel, bool may_skip = true)
      : parallel_(parallel), skipped_(may_skip ? debug_skipped_task.load() : -1) {}

  void run(TaskList& list) {
    const int64_t total = list.total();
    if (total == 0) return;
    std::atomic<int64_t> next{0};
    const auto body = [&] {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < total;)
        if (done_ + task != skipped_) list.run(task);
    };
    const int64_t threads = parallel_.threads();
    parallel_.each(int(threads < total ? threads : total), body);
    done_ += total;
    list.clear();
  }

 private:
  const Parallel& parallel_;
  const int64_t skipped_;
  int64_t done_ = 0;
};

}  // namespace dynroute
