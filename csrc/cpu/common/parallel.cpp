#include "cpu/common/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace mfk::cpu {
namespace {

class Helpers {
 public:
  void run(int threads, const std::function<void()>& work) {
    // If another job is running (two Python threads), this one runs on its own thread only.
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || threads <= 1) {
      work();
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start(threads - 1);
      work_ = &work;
      wanted_ = std::min(threads - 1, started_);
    }
    wake_.notify_all();
    work();
    // Do not wait for helpers that have not woken up by now.
    std::unique_lock<std::mutex> lock(mutex_);
    work_ = nullptr;
    wanted_ = 0;
    idle_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  // Starts as many helpers as the system allows; fewer of them do the same work.
  void start(int helpers) {
    try {
      for (; started_ < helpers; ++started_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  [[noreturn]] void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++running_;
      const std::function<void()>* work = work_;
      lock.unlock();
      (*work)();
      lock.lock();
      if (--running_ == 0) idle_.notify_one();
    }
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  const std::function<void()>* work_ = nullptr;
  int wanted_ = 0;
  int running_ = 0;
  int started_ = 0;
};

std::atomic<Threads> lent = nullptr;

// Never destroyed, as detached threads wait on it until the process ends. A forked child (a data
// loader worker) does not have these threads, so that it starts with a new object.
Helpers* helpers = nullptr;

Helpers& instance() {
  static std::once_flag once;
  std::call_once(once, [] {
    helpers = new Helpers;
    pthread_atfork(nullptr, nullptr, [] { helpers = new Helpers; });
  });
  return *helpers;
}

void run(int threads, const std::function<void()>& work) {
  const Threads others = lent;
  if (others != nullptr) {
    others(threads, work);
  } else {
    instance().run(threads, work);
  }
}

}  // namespace

void lend_threads(Threads threads) {
  lent = threads;
  pthread_atfork(nullptr, nullptr, [] { lent = nullptr; });
}

void run_parallel(int threads, const std::function<void()>& work) {
  // An exception must not escape from a helper, nor leave this function while helpers still work.
  std::mutex mutex;
  std::exception_ptr failure;
  run(threads, [&] {
    try {
      work();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (failure == nullptr) failure = std::current_exception();
    }
  });
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace mfk::cpu
