// Checks tensors and converts them to the arguments of the kernels of mask operations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/common/maps.h"
#include "cpu/common/memory.h"
#include "cpu/common/predictions.h"
#include "tensors/checks.h"

namespace mfk::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

inline bool is_double(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }

inline bool is_double(const OptionalTensor& tensor) {
  return tensor.has_value() && is_double(*tensor);
}

inline ScalarType type_of(bool is_double) {
  return is_double ? ScalarType::Double : ScalarType::Float;
}

inline void check_on_cpu(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.defined() && tensor.is_cpu(), name, " must be a tensor on the CPU, got ",
                  tensor.defined() ? text(tensor) + " on another device" : "none");
}

inline Tensor in_large_pages(Tensor result) {
  const auto bytes = result.numel() * static_cast<int64_t>(result.element_size());
  if (bytes > 0) prefer_large_pages(result.mutable_data_ptr(), bytes);
  return result;
}

// A new result that a kernel writes completely, by default in the type of `like`.
inline Tensor new_result(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         std::optional<ScalarType> type = std::nullopt) {
  return in_large_pages(torch::stable::new_empty(like, sizes, type));
}

// The channels of a pixel are adjacent in memory.
constexpr auto kChannelsLast = torch::headeronly::MemoryFormat::ChannelsLast;

inline Tensor channels_last(const Tensor& map) {
  return torch::stable::contiguous(map, kChannelsLast);
}

inline void check_channels(const char* name, int64_t channels) {
  STD_TORCH_CHECK(channels > 0 && channels % kMapChannels == 0, name,
                  " channels must be a multiple of ", kMapChannels, ", got ", channels);
}

// The type of maps that kernels read without a conversion.
inline Element map_element(const char* name, const Tensor& map) {
  if (map.scalar_type() != ScalarType::Double && map.scalar_type() != ScalarType::BFloat16) {
    check_type(name, map, ScalarType::Float);
  }
  return element_of(name, map);
}

inline Tensor new_channels_last(const Tensor& like,
                                torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  return in_large_pages(torch::stable::empty(sizes, like.scalar_type(), std::nullopt, std::nullopt,
                                             std::nullopt, kChannelsLast));
}

// Checks that apply to every argument.
inline void check_argument(const char* name, const Tensor& tensor) {
  check_on_cpu(name, tensor);
  check_memory(name, tensor);
}

inline Tensor contiguous(const char* name, const Tensor& tensor) {
  check_argument(name, tensor);
  return torch::stable::contiguous(tensor);
}

inline OptionalTensor contiguous(const char* name, const OptionalTensor& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return contiguous(name, *tensor);
}

// Checks an incoming gradient, or a tensor saved for the backward pass. It may be an expanded view,
// as the results are as large as it anyway.
inline Tensor saved(const char* name, const Tensor& tensor, ScalarType type,
                    const std::vector<Size>& sizes) {
  check_on_cpu(name, tensor);
  check_shape(name, tensor, sizes);
  check_type(name, tensor, type);
  return torch::stable::contiguous(tensor);
}

// The tensors that the backward pass of the focal and dice loss receives.
struct LossGradients {
  Tensor focal, dice, sums;

  // `shape`: that of the losses; the sums have another axis of size 3.
  LossGradients(const Tensor& grad_focal, const Tensor& grad_dice, const Tensor& saved_sums,
                ScalarType type, std::vector<Size> shape)
      : focal(saved("grad_focal", grad_focal, type, shape)),
        dice(saved("grad_dice", grad_dice, type, shape)) {
    shape.push_back(int64_t{3});
    sums = saved("sums", saved_sums, type, shape);
  }

  // Sets the pointers of a problem to these tensors.
  template <class Problem>
  void fill(Problem& problem) const {
    problem.grad_focal = focal.const_data_ptr();
    problem.grad_dice = dice.const_data_ptr();
    problem.sums = const_cast<void*>(sums.const_data_ptr());
  }
};

// Checks the sizes that kernels multiply with each other. Without channels, adds one of zeros.
inline void finish(MaskPredictions& predictions, bool factored) {
  check_at_most("mask_embed: masks of an image", product({predictions.layers, predictions.queries}),
                kMostMasks);
  check_at_most("the height of masks", predictions.height, kMostSide);
  check_at_most("the width of masks", predictions.width, kMostSide);
  check_at_most("mask_embed: channels", predictions.channels, kMostChannels);
  if (!factored || predictions.channels > 0) return;
  // All bits 0 mean zero in every type.
  static constexpr double kZero = 0;
  predictions.embed = predictions.features = &kZero;
  predictions.embed_stride = {};
  predictions.features_stride = {};
  predictions.channels = 1;
}

// The axes of layers and images may be missing.
inline EmbedStride embed_stride(const Tensor& embed, bool factored) {
  const int64_t query = embed.dim() - (factored ? 2 : 3);
  EmbedStride stride{};
  if (query > 0) {
    stride.layer = embed.stride(0);
    stride.image = embed.stride(1);
  }
  stride.query = embed.stride(query);
  if (factored) {
    stride.channel = embed.stride(query + 1);
  } else {
    stride.row = embed.stride(query + 1);
    stride.column = embed.stride(query + 2);
  }
  return stride;
}

// The axis of images may be missing.
inline FeatureStride features_stride(const Tensor& features) {
  const int64_t channel = features.dim() - 3;
  return {.image = channel > 0 ? features.stride(0) : 0,
          .channel = features.stride(channel),
          .row = features.stride(channel + 1),
          .column = features.stride(channel + 2)};
}

inline MaskPredictions predictions_of(const Tensor& embed, const OptionalTensor& features) {
  check_argument("mask_embed", embed);
  MaskPredictions predictions{};
  if (features.has_value()) {
    check_shape("mask_embed", embed, {"L", "B", "Q", "C"});
    check_argument("pixel_features", *features);
    check_shape("pixel_features", *features, {embed.size(1), embed.size(3), "h", "w"});
    predictions.features = features->const_data_ptr();
    predictions.features_element = element_of("pixel_features", *features);
    predictions.features_stride = features_stride(*features);
    predictions.channels = features->size(1);
  } else {
    check_shape("mask_embed", embed, {"L", "B", "Q", "h", "w"});
  }
  predictions.embed = embed.const_data_ptr();
  predictions.embed_element = element_of("mask_embed", embed);
  predictions.embed_stride = embed_stride(embed, features.has_value());
  predictions.layers = embed.size(0);
  predictions.images = embed.size(1);
  predictions.queries = embed.size(2);
  const Tensor& pixels = features.has_value() ? *features : embed;
  predictions.height = pixels.size(pixels.dim() - 2);
  predictions.width = pixels.size(pixels.dim() - 1);
  finish(predictions, features.has_value());
  return predictions;
}

// Images [M, h, w] that are sampled at points; pixel offsets have 32 bits.
inline void check_images(const char* name, const Tensor& images) {
  const int64_t pixels = product({images.size(1), images.size(2)});
  STD_TORCH_CHECK(pixels > 0 && pixels <= std::numeric_limits<int32_t>::max(), name,
                  " must have pixels, fewer than 2^31, got ", text(images));
}

inline void check_pixels(const MaskPredictions& predictions) {
  STD_TORCH_CHECK(predictions.height > 0 && predictions.width > 0, "masks must have pixels, got ",
                  predictions.height, " x ", predictions.width);
}

// Checked segments, and the tensors that own their memory.
struct StoredSegments {
  OptionalTensor label_map, masks;
  Tensor counts;
  int64_t total = 0;  // N
  Segments segments{};

  StoredSegments(const OptionalTensor& given_map, const OptionalTensor& given_masks,
                 const Tensor& given_counts, int64_t max_count, int64_t images)
      : label_map(contiguous("label_map", given_map)),
        masks(contiguous("masks", given_masks)),
        counts(contiguous("counts", given_counts)) {
    STD_TORCH_CHECK(label_map.has_value() != masks.has_value(),
                    "exactly one of label_map and masks is needed, got ",
                    masks.has_value() ? "both" : "none");
    check_type("counts", counts, ScalarType::Long);
    check_shape("counts", counts, {images});
    // Kernels store the index of a segment in the type of a label map, or in 32 bits.
    const int64_t most = label_map.has_value() ? std::numeric_limits<int16_t>::max()
                                               : std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(max_count >= 0 && max_count <= std::numeric_limits<int32_t>::max(),
                    "max_count must be from 0 to 2^31 - 1, got ", max_count);
    segments.counts = counts.const_data_ptr<int64_t>();
    segments.max_count = max_count;
    for (int64_t b = 0; b < images; ++b) {
      const int64_t count = segments.counts[b], limit = std::min(max_count, most);
      STD_TORCH_CHECK(count >= 0 && count <= limit, "counts[", b, "] is ", count,
                      ", expected 0 to ", limit);
      total += count;
    }
    const Tensor& storage = label_map.has_value() ? *label_map : *masks;
    const char* name = label_map.has_value() ? "label_map" : "masks";
    check_shape(name, storage, {label_map.has_value() ? images : total, "H", "W"});
    check_type(name, storage, label_map.has_value() ? ScalarType::Short : ScalarType::Bool);
    segments.height = storage.size(1);
    segments.width = storage.size(2);
    STD_TORCH_CHECK(segments.height > 0 && segments.width > 0, name, " must have pixels, got ",
                    text(storage));
    check_at_most("the height of segments", segments.height, kMostSide);
    check_at_most("the width of segments", segments.width, kMostSide);
    if (label_map.has_value()) {
      segments.label_map = storage.const_data_ptr<int16_t>();
    } else {
      segments.masks = static_cast<const uint8_t*>(storage.const_data_ptr());
    }
  }
};

}  // namespace mfk::cpu
