// Bilinear resizing along one axis with tables of source pixels and weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/resample.h"

namespace mfk::cpu {

// Pixel i of the result is low_weight[i] * pixel low[i] + high_weight[i] * pixel high[i].
template <class T>
struct Resize {
  const int32_t *low, *high;
  const T *low_weight, *high_weight;
};

// The memory of a `Resize`.
template <class T>
struct ResizeTable {
  std::vector<int32_t> low, high;
  std::vector<T> low_weight, high_weight;

  void add(int64_t low_source, int64_t high_source, T weight_of_low, T weight_of_high) {
    low.push_back(static_cast<int32_t>(low_source));
    high.push_back(static_cast<int32_t>(high_source));
    low_weight.push_back(weight_of_low);
    high_weight.push_back(weight_of_high);
  }

  void mirror() {
    for_columns([](auto& column) { std::reverse(column.begin(), column.end()); });
  }

  // Repeats the last pixel, because vector loads read beyond it.
  void pad(int64_t count) {
    for_columns([=](auto& column) { column.resize(column.size() + count, column.back()); });
  }

  Resize<T> view() const {
    return {.low = low.data(),
            .high = high.data(),
            .low_weight = low_weight.data(),
            .high_weight = high_weight.data()};
  }

 private:
  template <class F>
  void for_columns(F f) {
    f(low);
    f(high);
    f(low_weight);
    f(high_weight);
  }
};

}  // namespace mfk::cpu
