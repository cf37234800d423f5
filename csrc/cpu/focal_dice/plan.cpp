#include "cpu/focal_dice/plan.h"

#include <algorithm>
#include <vector>

#include "cpu/common/parallel.h"
#include "cpu/focal_dice/kernel.h"

namespace mfk::cpu {
namespace {

// The elements of a task. They do not depend on the number of threads, because the division into
// partial sums affects rounding.
constexpr int64_t kTaskElements = 1 << 15;

int64_t tasks_of_mask(const FocalDiceProblem& loss) {
  return divide_up(loss.elements, kTaskElements);
}

// Calls f(mask, task of the mask, first element, end).
template <class F>
void for_tasks(const FocalDiceProblem& loss, int threads, const F& f) {
  const int64_t tasks = tasks_of_mask(loss);
  for_each(loss.masks * tasks, threads, [&](int64_t i) {
    const int64_t first = i % tasks * kTaskElements;
    f(i / tasks, i % tasks, first, std::min(loss.elements, first + kTaskElements));
  });
}

template <class T>
void forward(const FocalDiceProblem& loss, int threads) {
  const int64_t tasks = tasks_of_mask(loss);
  std::vector<FocalDiceSums> parts(loss.masks * tasks);
  for_tasks(loss, threads, [&](int64_t mask, int64_t task, int64_t first, int64_t last) {
    parts[mask * tasks + task] = MFK_BEST_KERNEL(focal_dice).of<T>().sums(loss, mask, first, last);
  });
  for (int64_t mask = 0; mask < loss.masks; ++mask) {
    FocalDiceSums total;
    for (int64_t task = 0; task < tasks; ++task) {
      const FocalDiceSums& part = parts[mask * tasks + task];
      total.focal += part.focal;
      total.overlap += part.overlap;
      total.probability += part.probability;
      total.area += part.area;
    }
    static_cast<T*>(loss.focal)[mask] =
        static_cast<T>(total.focal / static_cast<double>(loss.elements));
    static_cast<T*>(loss.dice)[mask] =
        static_cast<T>(1 - (2 * total.overlap + 1) / (total.probability + total.area + 1));
    T* const sums = static_cast<T*>(loss.sums) + 3 * mask;
    sums[0] = static_cast<T>(total.overlap);
    sums[1] = static_cast<T>(total.probability);
    sums[2] = static_cast<T>(total.area);
  }
}

template <class T>
FocalDiceGradFactors<T> grad_factors(const FocalDiceProblem& loss, int64_t mask) {
  const T* sums = static_cast<const T*>(loss.sums) + 3 * mask;
  const double grad_dice = static_cast<const T*>(loss.grad_dice)[mask];
  const double above = 2 * static_cast<double>(sums[0]) + 1;
  const double below = static_cast<double>(sums[1]) + static_cast<double>(sums[2]) + 1;
  const double grad_focal =
      static_cast<const T*>(loss.grad_focal)[mask] / static_cast<double>(loss.elements);
  // Skip the dice loss if its incoming gradient is 0: its sums may be NaN.
  if (grad_dice == 0) return {static_cast<T>(grad_focal), 0, 0};
  return {static_cast<T>(grad_focal), static_cast<T>(grad_dice * above / (below * below)),
          static_cast<T>(-2 * grad_dice / below)};
}

template <class T>
void backward(const FocalDiceProblem& loss, int threads) {
  if (!loss.at_points) {
    for_tasks(loss, threads, [&](int64_t mask, int64_t, int64_t first, int64_t last) {
      MFK_BEST_KERNEL(focal_dice)
          .of<T>()
          .grad_logits(loss, mask, first, last, grad_factors<T>(loss, mask));
    });
    return;
  }
  // A task is a whole mask, because its points share pixels.
  const int64_t bytes = loss.height * loss.width * static_cast<int64_t>(sizeof(T));
  for_each(loss.masks, threads, bytes, [&](int64_t mask, void* memory) {
    MFK_BEST_KERNEL(focal_dice)
        .of<T>()
        .grad_logits_at_points(loss, mask, grad_factors<T>(loss, mask), memory);
  });
}

}  // namespace

void focal_dice(const FocalDiceProblem& loss, int threads) {
  loss.is_double ? forward<double>(loss, threads) : forward<float>(loss, threads);
}

void focal_dice_backward(const FocalDiceProblem& loss, int threads) {
  loss.is_double ? backward<double>(loss, threads) : backward<float>(loss, threads);
}

void sigmoid_focal_loss(const FocalLossProblem& loss, int threads) {
  for_tasks(loss.pair, threads, [&](int64_t, int64_t, int64_t first, int64_t last) {
    loss.pair.is_double ? MFK_BEST_KERNEL(focal_dice).of<double>().losses(loss, first, last)
                        : MFK_BEST_KERNEL(focal_dice).of<float>().losses(loss, first, last);
  });
}

void sigmoid_focal_loss_backward(const FocalLossProblem& loss, int threads) {
  for_tasks(loss.pair, threads, [&](int64_t, int64_t, int64_t first, int64_t last) {
    loss.pair.is_double ? MFK_BEST_KERNEL(focal_dice).of<double>().loss_gradients(loss, first, last)
                        : MFK_BEST_KERNEL(focal_dice).of<float>().loss_gradients(loss, first, last);
  });
}

}  // namespace mfk::cpu
