// Processes some pixels on one thread. The build compiles this file once for each instruction set,
// with MFK_KERNEL as the name of its only public object.
#include "cpu/group_norm/kernel.h"

#include "cpu/common/map_element.h"
#include "cpu/common/vector_math.h"

namespace mfk::cpu {
namespace {

// Calls f(i, c) for each vector of each pixel: its offset in a map, and its first channel.
template <class T, class F>
MFK_INLINE void for_each_vector(const GroupNormProblem& problem, NormPixels pixels, F f) {
  const int64_t channels = problem.channels;
  for (int64_t p = pixels.first; p < pixels.last; ++p) {
    const int64_t offset = (pixels.image * problem.pixels + p) * channels;
    for (int64_t c = 0; c < channels; c += VectorOf<T>::kWidth) f(offset + c, c);
  }
}

// Pairs of sums, [2][C].
template <class T>
struct Sums {
  T *first, *second;

  Sums(const GroupNormProblem& problem, T* sums) : first(sums), second(sums + problem.channels) {
    for (int64_t c = 0; c < 2 * problem.channels; ++c) sums[c] = 0;
  }

  // Adds `value`, and `value * factor`.
  MFK_INLINE void add(int64_t c, const VectorFor<T>& value, const VectorFor<T>& factor) const {
    using V = VectorFor<T>;
    store(first + c, load<V>(first + c) + value);
    store(second + c, multiply_add(value, factor, load<V>(second + c)));
  }
};

template <class T>
void moments(const GroupNormProblem& problem, NormPixels pixels, T* result) {
  using V = VectorFor<T>;
  T* mean = result;
  for (int64_t c = 0; c < problem.channels; ++c) mean[c] = 0;
  with_map_element<T>(problem.element, [&](auto element) {
    const auto* x = static_cast<const decltype(element)*>(problem.x);
    for_each_vector<T>(problem, pixels, [&](int64_t i, int64_t c) {
      store(mean + c, load<V>(mean + c) + load_widened<V>(x + i));
    });
    for (int64_t c = 0; c < problem.channels; ++c) {
      mean[c] /= static_cast<T>(pixels.last - pixels.first);
    }
    const Sums<T> sums(problem, result + problem.channels);
    for_each_vector<T>(problem, pixels, [&](int64_t i, int64_t c) {
      const V difference = load_widened<V>(x + i) - load<V>(mean + c);
      sums.add(c, difference, difference);
    });
  });
}

// The result before ReLU, from x - mean.
template <class T>
MFK_INLINE VectorFor<T> normalized(const NormChannels<T>& channels, int64_t c,
                                   const VectorFor<T>& difference) {
  using V = VectorFor<T>;
  return multiply_add(load<V>(channels.scale + c), difference, load<V>(channels.bias + c));
}

template <class T>
void forward(const GroupNormProblem& problem, NormPixels pixels, NormChannels<T> channels) {
  using V = VectorFor<T>;
  with_map_element<T>(problem.element, [&](auto element) {
    using S = decltype(element);
    const S* x = static_cast<const S*>(problem.x);
    S* y = static_cast<S*>(problem.y);
    for_each_vector<T>(problem, pixels, [&](int64_t i, int64_t c) {
      const V difference = load_widened<V>(x + i) - load<V>(channels.mean + c);
      V value = normalized(channels, c, difference);
      if (problem.relu) value = value < 0 ? V{} : value;  // NaN stays NaN
      store_narrowed(y + i, value);
    });
  });
}

// Calls f(i, c, x - mean, gradient of the result before ReLU) for each vector of each pixel.
template <class T, class F>
MFK_INLINE void for_each_gradient(const GroupNormProblem& problem, NormPixels pixels,
                                  const NormChannels<T>& channels, F f) {
  using V = VectorFor<T>;
  with_map_element<T>(problem.element, [&](auto element) {
    using S = decltype(element);
    const S* x = static_cast<const S*>(problem.x);
    const S* grad_y = static_cast<const S*>(problem.grad_y);
    for_each_vector<T>(problem, pixels, [&](int64_t i, int64_t c) {
      const V difference = load_widened<V>(x + i) - load<V>(channels.mean + c);
      V gradient = load_widened<V>(grad_y + i);
      if (problem.relu) gradient = normalized(channels, c, difference) <= 0 ? V{} : gradient;
      f(i, c, difference, gradient);
    });
  });
}

template <class T>
void grad_sums(const GroupNormProblem& problem, NormPixels pixels, NormChannels<T> channels,
               T* result) {
  using V = VectorFor<T>;
  const Sums<T> sums(problem, result);
  for_each_gradient<T>(problem, pixels, channels,
                       [&](int64_t, int64_t c, const V& difference, const V& gradient) {
                         sums.add(c, gradient, difference);
                       });
}

template <class T>
void grad_input(const GroupNormProblem& problem, NormPixels pixels, NormChannels<T> channels) {
  using V = VectorFor<T>;
  with_map_element<T>(problem.element, [&](auto element) {
    auto* grad_x = static_cast<decltype(element)*>(problem.grad_x);
    for_each_gradient<T>(
        problem, pixels, channels,
        [&](int64_t i, int64_t c, const V& difference, const V& gradient) {
          const V rest =
              multiply_add(load<V>(channels.slope + c), difference, load<V>(channels.offset + c));
          store_narrowed(grad_x + i, multiply_add(load<V>(channels.scale + c), gradient, rest));
        });
  });
}

}  // namespace

extern const PerType<GroupNormKernel> MFK_KERNEL;
const PerType<GroupNormKernel> MFK_KERNEL = {
    {moments<float>, forward<float>, grad_sums<float>, grad_input<float>},
    {moments<double>, forward<double>, grad_sums<double>, grad_input<double>},
};

}  // namespace mfk::cpu
