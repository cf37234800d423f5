// Run work on several threads that sleep, not spin, while there is none.
#pragma once

#include <functional>

namespace mfk::cpu {

// Call `work` on this thread and, as far as they wake up in time, on up to `threads` - 1 helpers at
// once. Returns when all calls have returned. `work` takes its share of the whole from a counter of
// its own, so it is right whatever the number of calls. It must not throw.
void run_parallel(int threads, const std::function<void()>& work);

}  // namespace mfk::cpu
