// Samples one image on one thread. The build compiles this file once for each instruction set, with
// MFK_KERNEL as the name of its only public object.
#include "cpu/sample_points/kernel.h"

#include "cpu/common/points.h"

namespace mfk::cpu {
namespace {

// Calls f(points, count, values) for runs of points.
template <class T, class F>
MFK_INLINE void for_runs(const SamplePointsProblem& problem, int64_t image, F f) {
  const T* points = static_cast<const T*>(problem.points) +
                    (problem.shared ? 0 : 2 * image * problem.points_per_image);
  T* values = static_cast<T*>(problem.values) + image * problem.points_per_image;
  for (int64_t first = 0; first < problem.points_per_image; first += kPoints) {
    const int64_t count = smaller(problem.points_per_image - first, kPoints);
    f(points + 2 * first, count, values + first);
  }
}

template <class T>
void forward(const SamplePointsProblem& problem, int64_t image) {
  with_values(problem.images, problem.images_are_bool, problem.element, [&](const auto* images) {
    for_runs<T>(problem, image, [&](const T* points, int64_t count, T* values) {
      sample(images + image * problem.height * problem.width, points, count, problem.height,
             problem.width, values);
    });
  });
}

template <class T>
void backward(const SamplePointsProblem& problem, int64_t image, void* memory) {
  const int64_t pixels = problem.height * problem.width;
  T* sums = static_cast<T*>(memory);
  for (int64_t p = 0; p < pixels; ++p) sums[p] = 0;
  for_runs<T>(problem, image, [&](const T* points, int64_t count, const T* values) {
    scatter(values, points, count, problem.height, problem.width, sums);
  });
  store_run(problem.element, problem.grad_images, image * pixels, pixels, sums);
}

}  // namespace

extern const PerType<SamplePointsKernel> MFK_KERNEL;
const PerType<SamplePointsKernel> MFK_KERNEL = {{forward<float>, backward<float>},
                                                {forward<double>, backward<double>}};

}  // namespace mfk::cpu
