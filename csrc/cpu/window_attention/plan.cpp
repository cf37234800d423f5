#include "cpu/window_attention/plan.h"

#include <algorithm>
#include <vector>

#include "cpu/common/parallel.h"
#include "cpu/window_attention/kernel.h"

namespace mfk::cpu {
namespace {

// Windows whose heads are computed one after the other: their data stays in a typical L2 cache.
constexpr int64_t kRunWindows = 4;
// The most groups of windows. Each adds up gradients of its own, which depend neither on the number
// of threads nor on their order.
constexpr int64_t kMostGroups = 64;
constexpr int64_t kTasksPerThread = 8;

int64_t windows_of_group(int64_t windows) {
  return round_up(divide_up(windows, kMostGroups), kRunWindows);
}

// Calls f(group, windows, memory) for each group of windows and each head. A task has all heads of
// a group, or some if there are few groups.
template <class F>
void for_each_group(int64_t windows, int64_t heads, int threads, int64_t bytes, const F& f) {
  const int64_t size = windows_of_group(windows), groups = divide_up(windows, size);
  const int64_t parts = std::min(heads, divide_up(kTasksPerThread * threads, groups));
  const int64_t some = divide_up(heads, parts);
  for_each(groups * parts, threads, bytes, [&](int64_t task, void* memory) {
    const int64_t group = task / parts, first_head = task % parts * some;
    const int64_t end = std::min(windows, (group + 1) * size);
    for (int64_t first = group * size; first < end; first += kRunWindows) {
      const int64_t last = std::min(end, first + kRunWindows);
      for (int64_t h = first_head; h < std::min(heads, first_head + some); ++h) {
        f(group, HeadWindows{h, first, last}, memory);
      }
    }
  });
}

template <class T>
void forward(const WindowAttentionProblem& problem, int threads) {
  const WindowAttentionKernel<T>& kernel = MFK_BEST_KERNEL(window_attention).of<T>();
  for_each_group(window_count(problem), problem.heads, threads, kernel.bytes(problem),
                 [&](int64_t, HeadWindows windows, void* memory) {
                   kernel.forward(problem, windows, memory);
                 });
}

// Adds up the gradients of all groups, [groups][size].
template <class T>
void add_up(const std::vector<T>& gradients, int64_t size, int64_t first, int64_t count,
            T* result) {
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0;
    for (int64_t k = first + i; k < static_cast<int64_t>(gradients.size()); k += size) {
      sum += static_cast<double>(gradients[k]);
    }
    result[i] = static_cast<T>(sum);
  }
}

template <class T>
void backward(const WindowAttentionProblem& problem, int threads) {
  const WindowAttentionKernel<T>& kernel = MFK_BEST_KERNEL(window_attention).of<T>();
  const int64_t windows = window_count(problem), heads = problem.heads, d = problem.channels;
  const int64_t tokens = problem.window_height * problem.window_width;
  const int64_t biases = heads * tokens * tokens, size = biases + 3 * heads * d;
  std::vector<T> gradients(divide_up(windows, windows_of_group(windows)) * size);
  for_each_group(windows, heads, threads, kernel.bytes(problem),
                 [&](int64_t group, HeadWindows run, void* memory) {
                   T* bias = gradients.data() + group * size;
                   T* padding = bias + biases + run.head * d;
                   kernel.backward(problem, run,
                                   {bias + run.head * tokens * tokens,
                                    {padding, padding + heads * d, padding + 2 * heads * d}},
                                   memory);
                 });
  T* grad_bias = static_cast<T*>(problem.grad_bias);
  for_each(heads, threads, [&](int64_t head) {
    const int64_t first = head * tokens * tokens;
    add_up(gradients, size, first, tokens * tokens, grad_bias + first);
  });
  add_up(gradients, size, biases, 3 * heads * d, static_cast<T*>(problem.grad_padding));
}

}  // namespace

int64_t window_count(const WindowAttentionProblem& problem) {
  return problem.images * divide_up(problem.height, problem.window_height) *
         divide_up(problem.width, problem.window_width);
}

void window_attention(const WindowAttentionProblem& problem, int threads) {
  problem.element == Element::kDouble ? forward<double>(problem, threads)
                                      : forward<float>(problem, threads);
}

void window_attention_backward(const WindowAttentionProblem& problem, int threads) {
  problem.element == Element::kDouble ? backward<double>(problem, threads)
                                      : backward<float>(problem, threads);
}

}  // namespace mfk::cpu
