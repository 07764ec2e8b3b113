// Runs tasks on a thread pool that may be busy, or waiting for us. Not a pool itself.
#ifndef SEQTRAIN_PARALLEL_H_
#define SEQTRAIN_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace seqtrain {

// Treats subnormal floats as zero while it lives; they are slow and below what is trusted anyway.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// Calls task(0) ... task(count - 1), each once, in any order; returns when all are done. The caller
// works too and waits only for tasks that a helper has begun: when every thread of the pool waits in
// here (four devices that share two threads), each still finishes its own tasks.
template <typename Pool>
void ParallelFor(Pool& pool, int64_t count, const std::function<void(int64_t)>& task) {
  struct State {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable changed;
  };
  auto state = std::make_shared<State>();
  const auto* work = &task;
  auto run = [state, work, count] {
    for (int64_t i; (i = state->next.fetch_add(1)) < count;) {
      std::exception_ptr error;
      try {
        FlushSubnormals flush;
        (*work)(i);
      } catch (...) {
        error = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(state->mutex);
      if (error) state->error = error;
      if (++state->done == count) state->changed.notify_all();
    }
  };
  const int64_t helpers = std::min<int64_t>(count, std::max<int64_t>(1, pool.num_threads())) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(run));
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->changed.wait(lock, [&] { return state->done == count; });
  if (state->error) std::rethrow_exception(state->error);
}

}  // namespace seqtrain

#endif  // SEQTRAIN_PARALLEL_H_
