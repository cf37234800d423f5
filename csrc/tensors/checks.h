// Checks that every operator, on the CPU and on GPUs, makes before it indexes memory by its
// arguments. Errors name the argument, what was expected and what was passed.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/element.h"
#include "core/extent.h"

namespace mfk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A size that an argument must have, or a letter that stands for any size.
struct Size {
  int64_t value = -1;
  const char* letter = nullptr;

  Size(int64_t size) : value(size) {}
  Size(const char* name) : letter(name) {}
};

inline std::string text(const std::vector<Size>& sizes) {
  std::string text = "[";
  for (const Size& size : sizes) {
    if (text.size() > 1) text += ", ";
    text += size.letter != nullptr ? size.letter : std::to_string(size.value);
  }
  return text + "]";
}

inline std::string text(const Tensor& tensor) {
  if (!tensor.defined()) return "None";
  std::string text = torch::headeronly::toString(tensor.scalar_type());
  text += " [";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(tensor.size(i));
  }
  return text + "]";
}

inline void check_shape(const char* name, const Tensor& tensor, const std::vector<Size>& sizes) {
  bool fits = tensor.defined() && tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t i = 0;
  for (const Size& size : sizes) {
    fits = fits && (size.letter != nullptr || tensor.size(i) == size.value);
    ++i;
  }
  STD_TORCH_CHECK(fits, name, " must be ", text(sizes), ", got ", text(tensor));
}

inline void check_type(const char* name, const Tensor& tensor, ScalarType type) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must be of type ",
                  torch::headeronly::toString(type), ", got ", text(tensor));
}

inline Element element_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return Element::kHalf;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::Double:
      return Element::kDouble;
    default:
      STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64, got ",
                      text(tensor));
      return Element::kDouble;
  }
}

// Refuses expanded views, for which a copy or an output would take far more memory than they do.
inline void check_memory(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.defined(), name, " must be a tensor, got None");
  STD_TORCH_CHECK(!is_inflated(tensor.dim(), tensor.sizes().data(), tensor.strides().data(),
                               static_cast<int64_t>(tensor.element_size())),
                  name, " is an expanded view that repeats its memory too often, got ",
                  text(tensor), "; if this is intended, copy it with contiguous()");
}

inline void check_at_most(const char* what, int64_t value, int64_t most) {
  STD_TORCH_CHECK(value <= most, what, " must be at most ", most, ", got ", value);
}

inline void check_focal(double alpha, double gamma) {
  STD_TORCH_CHECK(std::isfinite(gamma) && gamma >= 0, "gamma must be finite and at least 0, got ",
                  gamma);
  STD_TORCH_CHECK(std::isfinite(alpha) && alpha <= 1, "alpha must be finite and at most 1, got ",
                  alpha);
}

}  // namespace mfk
