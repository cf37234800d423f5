// Makes CPU kernels run on PyTorch's threads.
#include <torch/csrc/stable/ops.h>

#include "cpu/common/parallel.h"

namespace {

const bool kLent = [] {
  mfk::cpu::lend_threads([](int threads, const std::function<void()>& work) {
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) work();
    });
  });
  return true;
}();

}  // namespace
