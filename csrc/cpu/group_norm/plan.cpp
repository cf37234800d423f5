#include "cpu/group_norm/plan.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/common/parallel.h"
#include "cpu/group_norm/kernel.h"

namespace mfk::cpu {
namespace {

// Pixels of a task, few enough to stay in a typical L2 cache while they are read twice. Sums over
// them are computed in the kernel's type; sums of those, in double.
constexpr int64_t kTaskPixels = 256;

template <class T>
class GroupNorm {
 public:
  GroupNorm(const GroupNormProblem& problem, int threads)
      : problem_(problem),
        threads_(threads),
        tasks_(divide_up(problem.pixels, kTaskPixels)),
        channels_(problem.images * problem.channels),
        mean_(channels_),
        scale_(channels_),
        bias_(channels_),
        slope_(channels_),
        offset_(channels_) {}

  void forward() {
    const std::vector<T> moments = partial_sums(
        3, [&](NormPixels pixels, T* result) { kernel_.moments(problem_, pixels, result); });
    const std::vector<double> mean = mean_of_channels(moments);
    const std::vector<double> variance = variance_of_channels(moments, mean);
    const double size = static_cast<double>(group_channels());
    for_each_group([&](int64_t group, int64_t first) {
      double mean_of_group = 0, variance_of_group = 0;
      for (int64_t c = first; c < first + group_channels(); ++c) mean_of_group += mean[c] / size;
      for (int64_t c = first; c < first + group_channels(); ++c) {
        const double offset = mean[c] - mean_of_group;
        variance_of_group += (variance[c] + offset * offset) / size;
      }
      static_cast<T*>(problem_.mean)[group] = static_cast<T>(mean_of_group);
      static_cast<T*>(problem_.inverse_std)[group] =
          static_cast<T>(1 / std::sqrt(variance_of_group + problem_.eps));
    });
    set_channels();
    for_each_task([&](int64_t, NormPixels pixels) {
      kernel_.forward(problem_, pixels, channels_of(pixels.image));
    });
  }

  void backward() {
    set_channels();
    const std::vector<T> partial = partial_sums(2, [&](NormPixels pixels, T* result) {
      kernel_.grad_sums(problem_, pixels, channels_of(pixels.image), result);
    });
    std::vector<double> gradients(channels_), products(channels_);
    for_each_partial(partial, 2, [&](int64_t c, int64_t, const T* sums) {
      gradients[c] += sums[0];
      products[c] += sums[problem_.channels];
    });
    const auto* weight = static_cast<const T*>(problem_.weight);
    std::vector<double> grad_weight(problem_.channels), grad_bias(problem_.channels);
    for_each_group([&](int64_t group, int64_t first) {
      const double inverse_std = static_cast<const T*>(problem_.inverse_std)[group];
      double sum = 0, product = 0;
      for (int64_t c = first; c < first + group_channels(); ++c) {
        const int64_t channel = c % problem_.channels;
        sum += weight[channel] * gradients[c];
        product += weight[channel] * products[c];
        grad_bias[channel] += gradients[c];
        grad_weight[channel] += inverse_std * products[c];
      }
      const double factor = -inverse_std / (static_cast<double>(group_channels()) *
                                            static_cast<double>(problem_.pixels));
      for (int64_t c = first; c < first + group_channels(); ++c) {
        offset_[c] = static_cast<T>(factor * sum);
        slope_[c] = static_cast<T>(factor * inverse_std * inverse_std * product);
      }
    });
    std::copy(grad_weight.begin(), grad_weight.end(), static_cast<T*>(problem_.grad_weight));
    std::copy(grad_bias.begin(), grad_bias.end(), static_cast<T*>(problem_.grad_bias));
    for_each_task([&](int64_t, NormPixels pixels) {
      kernel_.grad_input(problem_, pixels, channels_of(pixels.image));
    });
  }

 private:
  int64_t group_channels() const { return problem_.channels / problem_.groups; }

  // Calls f(group, first channel) for each group of each image.
  template <class F>
  void for_each_group(const F& f) const {
    for (int64_t group = 0; group < problem_.images * problem_.groups; ++group) {
      f(group, group * group_channels());
    }
  }

  // Calls f(task, pixels); both passes over the maps give a thread the same pixels.
  template <class F>
  void for_each_task(const F& f) const {
    for_each_with_affinity(problem_.images * tasks_, threads_,
                           [&](int64_t task) { f(task, pixels_of(task)); });
  }

  NormPixels pixels_of(int64_t task) const {
    const int64_t first = task % tasks_ * kTaskPixels;
    return {task / tasks_, first, std::min(first + kTaskPixels, problem_.pixels)};
  }

  // What f(pixels, result) computes for each task, [B][tasks][count][C].
  template <class F>
  std::vector<T> partial_sums(int64_t count, const F& f) const {
    const int64_t size = count * problem_.channels;
    std::vector<T> partial(problem_.images * tasks_ * size);
    for_each_task(
        [&](int64_t task, NormPixels pixels) { f(pixels, partial.data() + task * size); });
    return partial;
  }

  // Calls f(channel, pixels, sums) for each task and channel; the first sum of a channel is sums[0],
  // the next one is C entries away.
  template <class F>
  void for_each_partial(const std::vector<T>& partial, int64_t count, const F& f) const {
    for (int64_t task = 0; task < problem_.images * tasks_; ++task) {
      const NormPixels pixels = pixels_of(task);
      const T* sums = partial.data() + task * count * problem_.channels;
      for (int64_t c = 0; c < problem_.channels; ++c) {
        f(pixels.image * problem_.channels + c, pixels.last - pixels.first, sums + c);
      }
    }
  }

  std::vector<double> mean_of_channels(const std::vector<T>& moments) const {
    std::vector<double> mean(channels_);
    const double all = static_cast<double>(problem_.pixels);
    for_each_partial(moments, 3, [&](int64_t c, int64_t pixels, const T* sums) {
      mean[c] += (static_cast<double>(pixels) * sums[0] + sums[problem_.channels]) / all;
    });
    return mean;
  }

  std::vector<double> variance_of_channels(const std::vector<T>& moments,
                                           const std::vector<double>& mean) const {
    std::vector<double> variance(channels_);
    const double all = static_cast<double>(problem_.pixels);
    for_each_partial(moments, 3, [&](int64_t c, int64_t pixels, const T* sums) {
      const double count = static_cast<double>(pixels), rest = sums[problem_.channels];
      const double offset = sums[0] + rest / count - mean[c];
      variance[c] +=
          (sums[2 * problem_.channels] - rest * rest / count + count * offset * offset) / all;
    });
    return variance;
  }

  // Repeats the statistics of groups for their channels.
  void set_channels() {
    for_each_group([&](int64_t group, int64_t first) {
      for (int64_t c = first; c < first + group_channels(); ++c) {
        const int64_t channel = c % problem_.channels;
        mean_[c] = static_cast<const T*>(problem_.mean)[group];
        scale_[c] = static_cast<const T*>(problem_.inverse_std)[group] *
                    static_cast<const T*>(problem_.weight)[channel];
        bias_[c] = static_cast<const T*>(problem_.bias)[channel];
      }
    });
  }

  NormChannels<T> channels_of(int64_t image) const {
    const int64_t first = image * problem_.channels;
    return {mean_.data() + first, scale_.data() + first, bias_.data() + first,
            slope_.data() + first, offset_.data() + first};
  }

  const GroupNormProblem& problem_;
  const int threads_;
  const int64_t tasks_;     // of an image
  const int64_t channels_;  // of all images
  const GroupNormKernel<T>& kernel_ = MFK_BEST_KERNEL(group_norm).of<T>();
  std::vector<T> mean_, scale_, bias_, slope_, offset_;  // [B][C]
};

}  // namespace

void group_norm(const GroupNormProblem& problem, int threads) {
  problem.element == Element::kDouble ? GroupNorm<double>(problem, threads).forward()
                                      : GroupNorm<float>(problem, threads).forward();
}

void group_norm_backward(const GroupNormProblem& problem, int threads) {
  problem.element == Element::kDouble ? GroupNorm<double>(problem, threads).backward()
                                      : GroupNorm<float>(problem, threads).backward();
}

}  // namespace mfk::cpu
