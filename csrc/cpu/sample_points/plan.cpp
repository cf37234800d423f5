#include "cpu/sample_points/plan.h"

#include "cpu/common/parallel.h"
#include "cpu/sample_points/kernel.h"

namespace mfk::cpu {
namespace {

// One image at a time, because its points share pixels and the cache holds only one image.
template <class T>
void forward(const SamplePointsProblem& problem, int threads) {
  const SamplePointsKernel<T>& kernel = MFK_BEST_KERNEL(sample_points).of<T>();
  for_each(problem.count, threads, [&](int64_t image) { kernel.forward(problem, image); });
}

template <class T>
void backward(const SamplePointsProblem& problem, int threads) {
  const SamplePointsKernel<T>& kernel = MFK_BEST_KERNEL(sample_points).of<T>();
  const int64_t bytes = problem.height * problem.width * static_cast<int64_t>(sizeof(T));
  for_each(problem.count, threads, bytes,
           [&](int64_t image, void* memory) { kernel.backward(problem, image, memory); });
}

}  // namespace

void sample_points(const SamplePointsProblem& problem, int threads) {
  problem.is_double ? forward<double>(problem, threads) : forward<float>(problem, threads);
}

void sample_points_backward(const SamplePointsProblem& problem, int threads) {
  problem.is_double ? backward<double>(problem, threads) : backward<float>(problem, threads);
}

}  // namespace mfk::cpu
