#include "cpu/group_norm/plan.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/common/parallel.h"
#include "cpu/group_norm/kernel.h"

namespace mfk::cpu {
namespace {

// Pixels of a task. Sums over them are computed in the kernel's type; sums of those, in double.
constexpr int64_t kTaskPixels = 128;

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
    std::vector<T> origin(channels_);
    for (int64_t b = 0; b < problem_.images; ++b) {
      kernel_.origin(problem_, b, origin.data() + b * problem_.channels);
    }
    const std::vector<double> sums = sums_of([&](NormPixels pixels, T* result) {
      kernel_.moments(problem_, pixels, origin.data() + pixels.image * problem_.channels, result);
    });
    for_each_group([&](int64_t group, int64_t first) {
      // Combine the channels, each of which has sums of differences from an origin of its own.
      const double pixels = static_cast<double>(problem_.pixels);
      const double size = static_cast<double>(group_channels());
      double mean = 0, variance = 0;
      for (int64_t c = first; c < first + group_channels(); ++c) {
        mean += (origin[c] + first_sum(sums, c) / pixels) / size;
      }
      for (int64_t c = first; c < first + group_channels(); ++c) {
        const double difference = first_sum(sums, c) / pixels;
        const double offset = origin[c] + difference - mean;
        const double within = second_sum(sums, c) / pixels - difference * difference;
        variance += (std::max(within, 0.0) + offset * offset) / size;
      }
      static_cast<T*>(problem_.mean)[group] = static_cast<T>(mean);
      static_cast<T*>(problem_.inverse_std)[group] =
          static_cast<T>(1 / std::sqrt(variance + problem_.eps));
    });
    set_channels();
    for_each_task([&](int64_t, NormPixels pixels) {
      kernel_.forward(problem_, pixels, channels_of(pixels.image));
    });
  }

  void backward() {
    set_channels();
    const std::vector<double> sums = sums_of([&](NormPixels pixels, T* result) {
      kernel_.grad_sums(problem_, pixels, channels_of(pixels.image), result);
    });
    const auto* weight = static_cast<const T*>(problem_.weight);
    std::vector<double> grad_weight(problem_.channels), grad_bias(problem_.channels);
    for_each_group([&](int64_t group, int64_t first) {
      const double inverse_std = static_cast<const T*>(problem_.inverse_std)[group];
      double sum = 0, product = 0;
      for (int64_t c = first; c < first + group_channels(); ++c) {
        const int64_t channel = c % problem_.channels;
        sum += weight[channel] * first_sum(sums, c);
        product += weight[channel] * second_sum(sums, c);
        grad_bias[channel] += first_sum(sums, c);
        grad_weight[channel] += inverse_std * second_sum(sums, c);
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
    for_each_with_affinity(problem_.images * tasks_, threads_, [&](int64_t task) {
      const int64_t first = task % tasks_ * kTaskPixels;
      f(task, {task / tasks_, first, std::min(first + kTaskPixels, problem_.pixels)});
    });
  }

  // The sums over all pixels of an image, [B][2][C], of those that f(pixels, result) computes.
  template <class F>
  std::vector<double> sums_of(const F& f) const {
    const int64_t size = 2 * problem_.channels;
    std::vector<T> partial(problem_.images * tasks_ * size);
    for_each_task(
        [&](int64_t task, NormPixels pixels) { f(pixels, partial.data() + task * size); });
    std::vector<double> sums(problem_.images * size);
    for (int64_t task = 0; task < problem_.images * tasks_; ++task) {
      double* of_image = sums.data() + task / tasks_ * size;
      for (int64_t i = 0; i < size; ++i) of_image[i] += partial[task * size + i];
    }
    return sums;
  }

  // The two sums of a channel, counted over all images.
  double first_sum(const std::vector<double>& sums, int64_t c) const {
    return sums[c / problem_.channels * problem_.channels + c];
  }
  double second_sum(const std::vector<double>& sums, int64_t c) const {
    return sums[(c / problem_.channels + 1) * problem_.channels + c];
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
