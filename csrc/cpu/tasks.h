// Task lists and the loop that runs them. Threads come from outside (torch's pool, in this project) through Parallel.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace dynroute {

// Runs body() on up to `threads` threads at once and returns when all have returned.
struct Parallel {
  virtual ~Parallel() = default;
  virtual int threads() const = 0;
  virtual void each(int threads, const std::function<void()>& body) const = 0;
};

// Jobs whose tasks may run at the same time, in any order.
class TaskList {
 public:
  template <class Job>
  void add(void (*kernel)(const Job&, int), const Job& job, int tasks) {
    add([kernel, job](int task) { kernel(job, task); }, tasks);
  }
  void add(std::function<void(int)> run, int tasks) {
    if (tasks > 0) ranges_.push_back({total_ += tasks, tasks, std::move(run)});
  }
  int64_t total() const { return total_; }
  void run(int64_t task) const {
    size_t low = 0, high = ranges_.size() - 1;
    while (low < high) {
      const size_t middle = (low + high) / 2;
      if (task < ranges_[middle].end) high = middle;
      else low = middle + 1;
    }
    ranges_[low].run(int(task - (ranges_[low].end - ranges_[low].tasks)));
  }
  void clear() { ranges_.clear(), total_ = 0; }

 private:
  struct Range {
    int64_t end;
    int tasks;
    std::function<void(int)> run;
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
