// From tensors to what the kernels of mask operations take.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "cpu/masks.h"

namespace mfk::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

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
      STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64");
  }
}

inline bool is_wide(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }

inline Masks masks_of(const Tensor& embed, const std::optional<Tensor>& features) {
  const int64_t dims = features.has_value() ? 4 : 5;
  STD_TORCH_CHECK(embed.dim() == dims, "mask_embed must have ", dims, " dimensions, got ",
                  embed.dim());
  Masks masks{};
  masks.embed = embed.const_data_ptr();
  masks.embed_element = element_of("mask_embed", embed);
  for (int64_t i = 0; i < dims; ++i) masks.embed_stride[i] = embed.stride(i);
  masks.layers = embed.size(0);
  masks.images = embed.size(1);
  masks.queries = embed.size(2);
  if (!features.has_value()) {
    masks.height = embed.size(3);
    masks.width = embed.size(4);
    return masks;
  }
  STD_TORCH_CHECK(features->is_cpu() && features->dim() == 4 && features->size(0) == masks.images &&
                      features->size(1) == embed.size(3),
                  "pixel_features must be [", masks.images, ", ", embed.size(3), ", h, w]");
  masks.features = features->const_data_ptr();
  masks.features_element = element_of("pixel_features", *features);
  for (int64_t i = 0; i < 4; ++i) masks.features_stride[i] = features->stride(i);
  masks.channels = features->size(1);
  masks.height = features->size(2);
  masks.width = features->size(3);
  return masks;
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

// `label_map`, `masks` and `counts` must be contiguous and outlive the result.
inline Segments segments_of(const std::optional<Tensor>& label_map,
                            const std::optional<Tensor>& masks, const Tensor& counts,
                            int64_t max_count, int64_t images) {
  STD_TORCH_CHECK(label_map.has_value() != masks.has_value(),
                  "exactly one of label_map and masks is needed");
  STD_TORCH_CHECK(counts.is_cpu() && counts.scalar_type() == ScalarType::Long &&
                      counts.dim() == 1 && counts.size(0) == images,
                  "counts must be an int64 CPU tensor of shape [", images, "]");
  Segments segments{};
  segments.counts = counts.const_data_ptr<int64_t>();
  segments.max_count = max_count;
  int64_t total = 0;
  for (int64_t b = 0; b < images; ++b) {
    STD_TORCH_CHECK(segments.counts[b] >= 0 && segments.counts[b] <= max_count, "counts[", b,
                    "] is ", segments.counts[b], ", expected 0 to ", max_count);
    total += segments.counts[b];
  }
  const Tensor& storage = label_map.has_value() ? *label_map : *masks;
  const char* name = label_map.has_value() ? "label_map" : "masks";
  const int64_t length = label_map.has_value() ? images : total;
  const ScalarType type = label_map.has_value() ? ScalarType::Short : ScalarType::Bool;
  STD_TORCH_CHECK(storage.is_cpu() && storage.scalar_type() == type && storage.dim() == 3 &&
                      storage.size(0) == length,
                  name, " must be a CPU tensor [", length, ", H, W] of the right type");
  segments.height = storage.size(1);
  segments.width = storage.size(2);
  STD_TORCH_CHECK(segments.height > 0 && segments.width > 0, name, " must have pixels");
  if (label_map.has_value()) {
    segments.label_map = storage.const_data_ptr<int16_t>();
  } else {
    segments.masks = static_cast<const uint8_t*>(storage.const_data_ptr());
  }
  return segments;
}

}  // namespace mfk::cpu
