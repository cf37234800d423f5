#include "cpu/sample_points/plan.h"

#include "cpu/common/parallel.h"
#include "cpu/sample_points/kernel.h"

namespace mfk::cpu {
namespace {

const SamplePointsTasks& tasks(const SamplePoints& task) {
  const SamplePointsKernel& kernel = MFK_BEST_KERNEL(sample_points);
  return task.wide ? kernel.wide : kernel.narrow;
}

}  // namespace

// An image at a time, because its points share pixels and the cache holds one.
void sample_points(const SamplePoints& task, int threads) {
  for_each(task.count, threads, [&](int64_t image) { tasks(task).forward(task, image); });
}

void sample_points_backward(const SamplePoints& task, int threads) {
  const int64_t size = task.wide ? sizeof(double) : sizeof(float);
  for_each(task.count, threads, task.height * task.width * size,
           [&](int64_t image, void* memory) { tasks(task).backward(task, image, memory); });
}

}  // namespace mfk::cpu
