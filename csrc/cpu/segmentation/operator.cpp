// The tensor operators of semantic and panoptic inference on the CPU.
#include "cpu/segmentation/plan.h"

#include <tuple>
#include <utility>

#include "cpu/common/tensors.h"

namespace {

using mfk::cpu::is_double;
using mfk::cpu::MaskPredictions;
using mfk::cpu::OptionalTensor;
using mfk::cpu::OwnersProblem;
using mfk::cpu::ScalarType;
using mfk::cpu::SemanticProblem;
using mfk::cpu::Tensor;
using mfk::cpu::ViewPredictions;

MaskPredictions predictions_of_image(const Tensor& embed, const OptionalTensor& features) {
  mfk::cpu::check_argument("mask_embed", embed);
  MaskPredictions predictions{};
  if (features.has_value()) {
    mfk::check_shape("mask_embed", embed, {"Q", "C"});
    mfk::cpu::check_argument("pixel_features", *features);
    mfk::check_shape("pixel_features", *features, {embed.size(1), "h", "w"});
    predictions.features = features->const_data_ptr();
    predictions.features_element = mfk::element_of("pixel_features", *features);
    predictions.features_stride = mfk::cpu::features_stride(*features);
    predictions.channels = features->size(0);
  } else {
    mfk::check_shape("mask_embed", embed, {"Q", "h", "w"});
  }
  predictions.embed = embed.const_data_ptr();
  predictions.embed_element = mfk::element_of("mask_embed", embed);
  predictions.embed_stride = mfk::cpu::embed_stride(embed, features.has_value());
  predictions.layers = predictions.images = 1;
  predictions.queries = embed.size(0);
  const Tensor& pixels = features.has_value() ? *features : embed;
  predictions.height = pixels.size(1);
  predictions.width = pixels.size(2);
  STD_TORCH_CHECK(predictions.queries > 0 && predictions.height > 0 && predictions.width > 0,
                  "masks must have queries and pixels, got ", predictions.queries, " queries of ",
                  predictions.height, " x ", predictions.width);
  mfk::cpu::finish(predictions, features.has_value());
  return predictions;
}

void check_side(const char* name, int64_t side) {
  STD_TORCH_CHECK(side > 0, name, " must be positive, got ", side);
  mfk::check_at_most(name, side, mfk::kMostSide);
}

struct ViewSizes {
  int64_t padded_height, padded_width, image_height, image_width;
};

ViewPredictions view_of(const Tensor& embed, const OptionalTensor& features, const ViewSizes& sizes,
                        bool flipped) {
  check_side("the height of the padded input", sizes.padded_height);
  check_side("the width of the padded input", sizes.padded_width);
  check_side("the height of the image", sizes.image_height);
  check_side("the width of the image", sizes.image_width);
  STD_TORCH_CHECK(
      sizes.image_height <= sizes.padded_height && sizes.image_width <= sizes.padded_width,
      "the image must fit into the padded input, got ", sizes.image_height, " x ",
      sizes.image_width, " in ", sizes.padded_height, " x ", sizes.padded_width);
  return {
      .predictions = predictions_of_image(embed, features),
      .padded_height = sizes.padded_height,
      .padded_width = sizes.padded_width,
      .image_height = sizes.image_height,
      .image_width = sizes.image_width,
      .flipped = flipped,
  };
}

void check_result(int64_t height, int64_t width) {
  STD_TORCH_CHECK(height > 0 && width > 0, "height and width must be positive, got ", height, " x ",
                  width);
  mfk::check_at_most("height", height, mfk::kMostSide);
  mfk::check_at_most("width", width, mfk::kMostSide);
}

Tensor in_type(const char* name, const Tensor& tensor, bool is_double) {
  mfk::cpu::check_argument(name, tensor);
  mfk::element_of(name, tensor);
  return torch::stable::contiguous(torch::stable::to(tensor, mfk::cpu::type_of(is_double)));
}

std::tuple<Tensor, Tensor> semantic_segmentation(
    std::vector<Tensor> probability, std::vector<Tensor> embed, std::vector<Tensor> features,
    std::vector<int64_t> padded_heights, std::vector<int64_t> padded_widths,
    std::vector<int64_t> image_heights, std::vector<int64_t> image_widths,
    std::vector<bool> flipped, int64_t height, int64_t width, bool resize_logits,
    bool return_scores) {
  const size_t views = probability.size();
  const auto check_views = [&](const char* name, size_t count) {
    STD_TORCH_CHECK(views > 0 && count == views, "probability and ", name,
                    " must be of the same views, at least one, got ", views, " and ", count);
  };
  check_views("mask_embed", embed.size());
  if (!features.empty()) check_views("pixel_features", features.size());
  check_views("padded_heights", padded_heights.size());
  check_views("padded_widths", padded_widths.size());
  check_views("image_heights", image_heights.size());
  check_views("image_widths", image_widths.size());
  check_views("flipped", flipped.size());
  check_result(height, width);
  SemanticProblem problem{};
  problem.height = height;
  problem.width = width;
  problem.resize_logits = resize_logits;
  for (size_t v = 0; v < views; ++v) {
    const OptionalTensor pixels = features.empty() ? OptionalTensor{} : features[v];
    const ViewSizes sizes{.padded_height = padded_heights[v],
                          .padded_width = padded_widths[v],
                          .image_height = image_heights[v],
                          .image_width = image_widths[v]};
    problem.views.push_back(view_of(embed[v], pixels, sizes, flipped[v]));
    mfk::check_shape("probability", probability[v], {embed[v].size(0), "K"});
    mfk::check_shape("probability", probability[v], {"Q", probability[0].size(1)});
    problem.is_double |= is_double(probability[v]) || is_double(embed[v]) || is_double(pixels);
    STD_TORCH_CHECK(probability[v].size(1) > 0, "probability must have classes, got ",
                    mfk::text(probability[v]));
  }
  problem.classes = probability[0].size(1);
  for (Tensor& of_view : probability) {
    of_view = in_type("probability", of_view, problem.is_double);
    problem.probability.push_back(of_view.const_data_ptr());
  }
  Tensor labels = mfk::cpu::new_result(probability[0], {height, width}, ScalarType::Long);
  Tensor scores = return_scores
                      ? mfk::cpu::new_result(probability[0], {problem.classes, height, width})
                      : torch::stable::new_empty(probability[0], {0});
  problem.labels = labels.mutable_data_ptr<int64_t>();
  problem.scores = return_scores ? scores.mutable_data_ptr() : nullptr;
  mfk::cpu::semantic_segmentation(problem, mfk::cpu::threads());
  return {std::move(labels), std::move(scores)};
}

std::tuple<Tensor, Tensor> panoptic_owners(const Tensor& scores, const Tensor& embed,
                                           const OptionalTensor& features, int64_t padded_height,
                                           int64_t padded_width, int64_t image_height,
                                           int64_t image_width, int64_t height, int64_t width,
                                           bool confident_only) {
  check_result(height, width);
  mfk::check_shape("scores", scores, {"Q"});
  OwnersProblem problem{};
  const ViewSizes sizes{.padded_height = padded_height,
                        .padded_width = padded_width,
                        .image_height = image_height,
                        .image_width = image_width};
  problem.views.push_back(view_of(embed, features, sizes, false));
  problem.height = height;
  problem.width = width;
  problem.is_double = is_double(scores) || is_double(embed) || is_double(features);
  problem.confident_only = confident_only;
  mfk::check_shape("scores", scores, {embed.size(0)});
  const Tensor query_scores = in_type("scores", scores, problem.is_double);
  problem.scores = query_scores.const_data_ptr();
  Tensor owners = mfk::cpu::new_result(scores, {height, width}, ScalarType::Int);
  Tensor counts = torch::stable::new_empty(scores, {scores.size(0), 3}, ScalarType::Long);
  problem.owners = owners.mutable_data_ptr<int32_t>();
  problem.counts = counts.mutable_data_ptr<int64_t>();
  mfk::cpu::panoptic_owners(problem, mfk::cpu::threads());
  return {std::move(owners), std::move(counts)};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("semantic_segmentation", TORCH_BOX(&semantic_segmentation));
  m.impl("panoptic_owners", TORCH_BOX(&panoptic_owners));
}

}  // namespace
