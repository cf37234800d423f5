// Processes some pixels on one thread. The build compiles this file once for each instruction set,
// with MFK_KERNEL as the name of its only public object.
#include "cpu/group_norm/kernel.h"

#include "core/integers.h"
#include "cpu/common/maps.h"
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

// Pixels whose values are added up before the sums in memory change.
constexpr int64_t kRun = 8;

// Calls f(i, count, c) for each vector of each run of pixels: its offset in the first pixel, the
// number of pixels, and its first channel.
template <class T, class F>
MFK_INLINE void for_each_run(const GroupNormProblem& problem, NormPixels pixels, F f) {
  for (int64_t p = pixels.first; p < pixels.last; p += kRun) {
    const int64_t count = smaller(kRun, pixels.last - p);
    for_each_vector<T>(problem, {pixels.image, p, p + 1},
                       [&](int64_t i, int64_t c) { f(i, count, c); });
  }
}

// Pairs of sums, [2][C].
template <class T>
struct Sums {
  using V = VectorFor<T>;
  T *first, *second;

  Sums(const GroupNormProblem& problem, T* sums) : first(sums), second(sums + problem.channels) {
    for (int64_t c = 0; c < 2 * problem.channels; ++c) sums[c] = 0;
  }

  // Adds values and products; pair(k) returns a value and its factor, for k < count.
  template <class F>
  MFK_INLINE void add(int64_t count, int64_t c, F pair) const {
    V sum = load<V>(first + c), products = load<V>(second + c);
    for (int64_t k = 0; k < count; ++k) {
      const auto [value, factor] = pair(k);
      sum += value;
      products = multiply_add(value, factor, products);
    }
    store(first + c, sum);
    store(second + c, products);
  }
};

template <class V>
struct Pair {
  V value, factor;
};

template <class T>
void moments(const GroupNormProblem& problem, NormPixels pixels, T* result) {
  using V = VectorFor<T>;
  const int64_t channels = problem.channels;
  T* mean = result;
  for (int64_t c = 0; c < channels; ++c) mean[c] = 0;
  with_map_element<T>(problem.element, [&](auto element) {
    const auto* x = static_cast<const decltype(element)*>(problem.x);
    for_each_run<T>(problem, pixels, [&](int64_t i, int64_t count, int64_t c) {
      V sum = load<V>(mean + c);
      for (int64_t k = 0; k < count; ++k) sum += load_widened<V>(x + i + k * channels);
      store(mean + c, sum);
    });
    for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<T>(pixels.last - pixels.first);
    const Sums<T> sums(problem, result + channels);
    for_each_run<T>(problem, pixels, [&](int64_t i, int64_t count, int64_t c) {
      const V center = load<V>(mean + c);
      sums.add(count, c, [&](int64_t k) {
        const V difference = load_widened<V>(x + i + k * channels) - center;
        return Pair<V>{difference, difference};
      });
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

// Reads maps of the backward pass at an offset and its channel.
template <class S, class T>
struct Gradients {
  using V = VectorFor<T>;
  const GroupNormProblem& problem;
  const NormChannels<T>& channels;
  const S* x = static_cast<const S*>(problem.x);
  const S* grad_y = static_cast<const S*>(problem.grad_y);

  // The gradient of the result before ReLU, and x - mean.
  MFK_INLINE Pair<V> at(int64_t i, int64_t c) const {
    const V difference = load_widened<V>(x + i) - load<V>(channels.mean + c);
    V gradient = load_widened<V>(grad_y + i);
    if (problem.relu) gradient = normalized(channels, c, difference) <= 0 ? V{} : gradient;
    return {gradient, difference};
  }
};

template <class T>
void grad_sums(const GroupNormProblem& problem, NormPixels pixels, NormChannels<T> channels,
               T* result) {
  const Sums<T> sums(problem, result);
  with_map_element<T>(problem.element, [&](auto element) {
    const Gradients<decltype(element), T> gradients{problem, channels};
    for_each_run<T>(problem, pixels, [&](int64_t i, int64_t count, int64_t c) {
      sums.add(count, c, [&](int64_t k) { return gradients.at(i + k * problem.channels, c); });
    });
  });
}

template <class T>
void grad_input(const GroupNormProblem& problem, NormPixels pixels, NormChannels<T> channels) {
  using V = VectorFor<T>;
  with_map_element<T>(problem.element, [&](auto element) {
    using S = decltype(element);
    const Gradients<S, T> gradients{problem, channels};
    auto* grad_x = static_cast<S*>(problem.grad_x);
    for_each_vector<T>(problem, pixels, [&](int64_t i, int64_t c) {
      const auto [gradient, difference] = gradients.at(i, c);
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
