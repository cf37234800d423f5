// Computes runs of elements on one thread. The build compiles this file once for each instruction
// set, with MFK_KERNEL as the name of its only public object.
#include "cpu/focal_dice/kernel.h"

#include <cmath>

#include "cpu/common/points.h"

namespace mfk::cpu {
namespace {

// Elements that are converted to the working type at a time.
constexpr int64_t kRun = kPoints;

// Calls f with the targets as an array of their type.
template <class F>
MFK_INLINE void with_targets(const FocalDiceProblem& loss, F f) {
  with_values(loss.targets, loss.targets_are_bool, loss.targets_element, f);
}

template <class T>
class Run {
 public:
  // Elements [first, first + count) of a mask.
  Run(const FocalDiceProblem& loss, int64_t mask, int64_t first, int64_t count) : count_(count) {
    if (loss.at_points) {
      read_points(loss, mask, first);
    } else {
      with_element(loss.logits_element, [&](auto kind) {
        const auto* source = static_cast<const decltype(kind)*>(loss.logits);
        copy_strided(source + mask * loss.elements + first, 1, count, logits);
      });
      with_targets(loss, [&](const auto* source) {
        source += mask * loss.elements + first;
        for (int64_t i = 0; i < count; ++i) targets[i] = static_cast<T>(widen(source[i]));
      });
    }
    for (int64_t i = count; i < round_up(count, VectorOf<T>::kWidth); ++i) {
      logits[i] = targets[i] = 0;
    }
  }

  // Calls f(index of the first element, logits, targets, which lanes are elements).
  template <class F>
  MFK_INLINE void for_vectors(F f) const {
    using V = VectorFor<T>;
    for (int64_t i = 0; i < count_; i += VectorOf<T>::kWidth) {
      const int left = static_cast<int>(count_ - i);
      f(i, load<V>(logits + i), load<V>(targets + i), lane_indices<T>() < left);
    }
  }

  alignas(64) T logits[kRun];
  alignas(64) T targets[kRun];

 private:
  void read_points(const FocalDiceProblem& loss, int64_t mask, int64_t first) {
    const T* points = static_cast<const T*>(loss.points) + 2 * (mask * loss.elements + first);
    with_element(loss.logits_element, [&](auto kind) {
      const auto* image = static_cast<const decltype(kind)*>(loss.logits);
      sample(image + mask * loss.height * loss.width, points, count_, loss.height, loss.width,
             logits);
    });
    with_targets(loss, [&](const auto* image) {
      image += mask * loss.target_height * loss.target_width;
      sample(image, points, count_, loss.target_height, loss.target_width, targets);
    });
  }

  int64_t count_;
};

template <class T, class F>
MFK_INLINE void for_runs(const FocalDiceProblem& loss, int64_t mask, int64_t first, int64_t last,
                         F f) {
  for (int64_t start = first; start < last; start += kRun) {
    const int64_t count = smaller(last - start, kRun);
    f(Run<T>(loss, mask, start, count), start, count);
  }
}

// The modulating factor base^gamma. For targets of 0 or 1, it is computed from the known
// logarithms.
template <class T, class V = VectorFor<T>>
MFK_INLINE V general_power(const Sigmoid<V>& s, const V& y, V base, T gamma) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  const IndexFor<T> hard = (y == 0) | (y == 1);
  bool all = true;
  for (int k = 0; k < kWidth; ++k) all &= hard[k] != 0;
  if (all) return exp_negative(-gamma * (y > 0 ? s.up : s.down));
  for (int k = 0; k < kWidth; ++k) base[k] = std::pow(base[k], gamma);
  return base;
}

// The focal loss of logits x with targets y: weight * base^gamma * cross-entropy, base = 1 - p_t.
// Targets are from 0 to 1, or slightly beyond (from bicubic interpolation); then base may be
// negative.
template <int kGamma, class T>
struct Focal {
  using V = VectorFor<T>;
  Sigmoid<V> s;
  V y, base, power, entropy, weight;

  MFK_INLINE Focal(const V& x, const V& targets, double alpha, T gamma)
      : s(sigmoid(x)), y(targets) {
    base = s.p * (1 - y) + s.q * y;
    entropy = s.up * (1 - y) + s.down * y;
    if constexpr (kGamma == 0) power = V{} + 1;
    if constexpr (kGamma == 1) power = base;
    if constexpr (kGamma == 2) power = base * base;
    if constexpr (kGamma < 0) power = general_power<T>(s, y, base, gamma);
    weight = V{} + 1;
    if (alpha >= 0) weight = static_cast<T>(1 - alpha) + static_cast<T>(2 * alpha - 1) * y;
  }

  MFK_INLINE V loss() const { return weight * power * entropy; }

  // The derivative with respect to x.
  MFK_INLINE V gradient(T gamma) const {
    if constexpr (kGamma == 0) return weight * (s.p - y);
    const V base_gradient = s.p * s.q * (1 - 2 * y);
    if constexpr (kGamma == 1) return weight * (base * (s.p - y) + base_gradient * entropy);
    if constexpr (kGamma == 2)
      return weight * base * (base * (s.p - y) + 2 * base_gradient * entropy);
    // With this quotient, at most 1 for targets from 0 to 1, the result is finite for gamma < 1
    // too.
    const V relative = base_gradient / (magnitude(base) < least() ? broadcast(least()) : base);
    return weight * power * (s.p - y + gamma * relative * entropy);
  }

  static constexpr T least() { return sizeof(T) == 8 ? T(2.3e-308) : T(1.2e-38); }
};

template <class T>
FocalDiceSums sums(const FocalDiceProblem& loss, int64_t mask, int64_t first, int64_t last) {
  using V = VectorFor<T>;
  FocalDiceSums total;
  const T exponent = static_cast<T>(loss.gamma);
  with_gamma(loss.gamma, [&](auto gamma) {
    for_runs<T>(loss, mask, first, last, [&](const Run<T>& run, int64_t, int64_t) {
      V focal{}, overlap{}, probability{}, area{};
      run.for_vectors([&](int64_t, const V& x, const V& y, const IndexFor<T>& inside) {
        const Focal<decltype(gamma)::value, T> f(x, y, loss.alpha, exponent);
        focal += inside ? f.loss() : V{};
        probability += inside ? f.s.p : V{};
        overlap += f.s.p * y;
        area += y;
      });
      total.focal += sum_of<T>(focal);
      total.overlap += sum_of<T>(overlap);
      total.probability += sum_of<T>(probability);
      total.area += sum_of<T>(area);
    });
  });
  return total;
}

// Calls f(first element of a run, its gradients, their number).
template <class T, class F>
MFK_INLINE void for_gradients(const FocalDiceProblem& loss, int64_t mask, int64_t first,
                              int64_t last, const FocalDiceGradFactors<T>& factors, F f) {
  using V = VectorFor<T>;
  const T exponent = static_cast<T>(loss.gamma);
  alignas(64) T result[kRun];
  with_gamma(loss.gamma, [&](auto gamma) {
    for_runs<T>(loss, mask, first, last, [&](const Run<T>& run, int64_t start, int64_t count) {
      run.for_vectors([&](int64_t i, const V& x, const V& y, const IndexFor<T>&) {
        const Focal<decltype(gamma)::value, T> focal(x, y, loss.alpha, exponent);
        const V dice = (factors.dice + factors.dice_change * y) * focal.s.p * focal.s.q;
        // Without a gradient of the focal loss, skip its term, which is NaN for an infinite logit.
        const V all = multiply_add(broadcast(factors.focal), focal.gradient(exponent), dice);
        store(result + i, factors.focal != 0 ? all : dice);
      });
      f(start, result, count);
    });
  });
}

template <class T>
void write_grad_logits(const FocalDiceProblem& loss, int64_t mask, int64_t first, int64_t last,
                       const FocalDiceGradFactors<T>& factors) {
  for_gradients(loss, mask, first, last, factors,
                [&](int64_t start, const T* values, int64_t count) {
                  store_run(loss.logits_element, loss.grad_logits, mask * loss.elements + start,
                            count, values);
                });
}

template <class T>
void write_grad_logits_at_points(const FocalDiceProblem& loss, int64_t mask,
                                 const FocalDiceGradFactors<T>& factors, void* memory) {
  const int64_t pixels = loss.height * loss.width;
  T* image = static_cast<T*>(memory);
  for (int64_t p = 0; p < pixels; ++p) image[p] = 0;
  const T* points = static_cast<const T*>(loss.points) + 2 * mask * loss.elements;
  for_gradients(loss, mask, 0, loss.elements, factors,
                [&](int64_t start, const T* values, int64_t count) {
                  scatter(values, points + 2 * start, count, loss.height, loss.width, image);
                });
  store_run(loss.logits_element, loss.grad_logits, mask * pixels, pixels, image);
}

template <class T>
void write_losses(const FocalLossProblem& loss, int64_t first, int64_t last) {
  using V = VectorFor<T>;
  const FocalDiceProblem& pair = loss.pair;
  const T exponent = static_cast<T>(pair.gamma);
  alignas(64) T result[kRun];
  with_gamma(pair.gamma, [&](auto gamma) {
    for_runs<T>(pair, 0, first, last, [&](const Run<T>& run, int64_t start, int64_t count) {
      run.for_vectors([&](int64_t i, const V& x, const V& y, const IndexFor<T>&) {
        store(result + i, Focal<decltype(gamma)::value, T>(x, y, pair.alpha, exponent).loss());
      });
      store_run(pair.logits_element, loss.losses, start, count, result);
    });
  });
}

template <class T>
void write_loss_gradients(const FocalLossProblem& loss, int64_t first, int64_t last) {
  const FocalDiceProblem& pair = loss.pair;
  alignas(64) T grad_losses[kRun];
  for_gradients<T>(pair, 0, first, last, {1, 0, 0}, [&](int64_t start, T* values, int64_t count) {
    with_element(pair.logits_element, [&](auto kind) {
      copy_strided(static_cast<const decltype(kind)*>(loss.grad_losses) + start, 1, count,
                   grad_losses);
    });
    for (int64_t i = 0; i < count; ++i) values[i] *= grad_losses[i];
    store_run(pair.logits_element, pair.grad_logits, start, count, values);
  });
}

template <class T>
constexpr FocalDiceKernel<T> kernel() {
  return {sums<T>, write_grad_logits<T>, write_grad_logits_at_points<T>, write_losses<T>,
          write_loss_gradients<T>};
}

}  // namespace

extern const PerType<FocalDiceKernel> MFK_KERNEL;
const PerType<FocalDiceKernel> MFK_KERNEL = {kernel<float>(), kernel<double>()};

}  // namespace mfk::cpu
