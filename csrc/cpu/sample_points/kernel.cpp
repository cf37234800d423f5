// One image on one thread. The build compiles this file once for each instruction set, with
// MFK_KERNEL as the name of its one public object.
#include "cpu/sample_points/kernel.h"

#include "cpu/common/points.h"

namespace mfk::cpu {
namespace {

// f(points, how many, their values) for runs of points.
template <class T, class F>
MFK_INLINE void for_runs(const SamplePoints& task, int64_t image, F f) {
  const T* points = static_cast<const T*>(task.points) + (task.shared ? 0 : 2 * image * task.each);
  T* values = static_cast<T*>(task.values) + image * task.each;
  for (int64_t first = 0; first < task.each; first += kPoints) {
    const int64_t count = task.each - first < kPoints ? task.each - first : kPoints;
    f(points + 2 * first, count, values + first);
  }
}

template <class T>
void forward(const SamplePoints& task, int64_t image) {
  with_values(task.images, task.images_are_bool, task.element, [&](const auto* images) {
    for_runs<T>(task, image, [&](const T* points, int64_t count, T* values) {
      sample(images + image * task.height * task.width, points, count, task.height, task.width,
             values);
    });
  });
}

template <class T>
void backward(const SamplePoints& task, int64_t image, void* memory) {
  const int64_t pixels = task.height * task.width;
  T* sums = static_cast<T*>(memory);
  for (int64_t p = 0; p < pixels; ++p) sums[p] = 0;
  for_runs<T>(task, image, [&](const T* points, int64_t count, const T* values) {
    scatter(values, points, count, task.height, task.width, sums);
  });
  store_run(task.element, task.grad_images, image * pixels, pixels, sums);
}

}  // namespace

extern const SamplePointsKernel MFK_KERNEL;
const SamplePointsKernel MFK_KERNEL = {{forward<float>, backward<float>},
                                       {forward<double>, backward<double>}};

}  // namespace mfk::cpu
