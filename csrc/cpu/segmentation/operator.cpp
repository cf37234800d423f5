// The tensor operators of semantic and panoptic inference on the CPU.
#include "cpu/segmentation/plan.h"

#include <tuple>
#include <utility>

#include "cpu/common/tensors.h"

namespace {

using mfk::cpu::Masks;
using mfk::cpu::OptionalTensor;
using mfk::cpu::PanopticOwners;
using mfk::cpu::ScalarType;
using mfk::cpu::SegmentationView;
using mfk::cpu::SemanticSegmentation;
using mfk::cpu::Tensor;

Masks masks_of_image(const Tensor& embed, const OptionalTensor& features) {
  mfk::cpu::check_argument("mask_embed", embed);
  Masks masks{};
  if (features.has_value()) {
    mfk::check_shape("mask_embed", embed, {"Q", "C"});
    mfk::cpu::check_argument("pixel_features", *features);
    mfk::check_shape("pixel_features", *features, {embed.size(1), "h", "w"});
    masks.features = features->const_data_ptr();
    masks.features_element = mfk::element_of("pixel_features", *features);
    for (int64_t i = 0; i < 3; ++i) masks.features_stride[1 + i] = features->stride(i);
    masks.channels = features->size(0);
  } else {
    mfk::check_shape("mask_embed", embed, {"Q", "h", "w"});
  }
  masks.embed = embed.const_data_ptr();
  masks.embed_element = mfk::element_of("mask_embed", embed);
  for (int64_t i = 0; i < embed.dim(); ++i) masks.embed_stride[2 + i] = embed.stride(i);
  masks.layers = masks.images = 1;
  masks.queries = embed.size(0);
  const Tensor& pixels = features.has_value() ? *features : embed;
  masks.height = pixels.size(1);
  masks.width = pixels.size(2);
  STD_TORCH_CHECK(masks.queries > 0 && masks.height > 0 && masks.width > 0,
                  "masks must have queries and pixels, got ", masks.queries, " queries of ",
                  masks.height, " x ", masks.width);
  mfk::cpu::finish(masks, features.has_value());
  return masks;
}

SegmentationView view_of(const Tensor& embed, const OptionalTensor& features,
                         const int64_t* geometry) {
  for (int i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(geometry[i] > 0, "geometry must be positive, got ", geometry[i]);
    mfk::check_at_most("geometry", geometry[i], mfk::kMostSide);
  }
  STD_TORCH_CHECK(geometry[2] <= geometry[0] && geometry[3] <= geometry[1],
                  "geometry: the image must fit into the input, got ", geometry[2], " x ",
                  geometry[3], " in ", geometry[0], " x ", geometry[1]);
  return {
      masks_of_image(embed, features), geometry[0], geometry[1], geometry[2], geometry[3], false};
}

void check_result(int64_t height, int64_t width) {
  STD_TORCH_CHECK(height > 0 && width > 0, "height and width must be positive, got ", height, " x ",
                  width);
  mfk::check_at_most("height", height, mfk::kMostSide);
  mfk::check_at_most("width", width, mfk::kMostSide);
}

bool is_wide(const Tensor& embed, const OptionalTensor& features) {
  return mfk::cpu::is_wide(embed) || (features.has_value() && mfk::cpu::is_wide(*features));
}

ScalarType type_of(bool wide) { return wide ? ScalarType::Double : ScalarType::Float; }

Tensor in_type(const char* name, const Tensor& tensor, bool wide) {
  mfk::cpu::check_argument(name, tensor);
  mfk::element_of(name, tensor);
  return torch::stable::contiguous(torch::stable::to(tensor, type_of(wide)));
}

std::tuple<Tensor, Tensor> semantic_segmentation(std::vector<Tensor> probability,
                                                 std::vector<Tensor> embed,
                                                 std::vector<Tensor> features,
                                                 std::vector<int64_t> geometry, int64_t height,
                                                 int64_t width, bool resize_logits,
                                                 bool return_scores) {
  constexpr int64_t kFields = 5;
  const size_t views = probability.size();
  STD_TORCH_CHECK(views > 0 && embed.size() == views && geometry.size() == kFields * views &&
                      (features.empty() || features.size() == views),
                  "probability, mask_embed, geometry and pixel_features must be of the same views, "
                  "got ",
                  views, ", ", embed.size(), ", ", geometry.size(), " numbers and ",
                  features.size());
  check_result(height, width);
  SemanticSegmentation task{};
  task.height = height;
  task.width = width;
  task.resize_logits = resize_logits;
  for (size_t v = 0; v < views; ++v) {
    const OptionalTensor pixels = features.empty() ? OptionalTensor{} : features[v];
    task.views.push_back(view_of(embed[v], pixels, geometry.data() + kFields * v));
    task.views.back().flipped = geometry[kFields * v + 4] != 0;
    mfk::check_shape("probability", probability[v], {embed[v].size(0), "K"});
    mfk::check_shape("probability", probability[v], {"Q", probability[0].size(1)});
    task.wide |= mfk::cpu::is_wide(probability[v]) || is_wide(embed[v], pixels);
    STD_TORCH_CHECK(probability[v].size(1) > 0, "probability must have classes, got ",
                    mfk::text(probability[v]));
  }
  task.classes = probability[0].size(1);
  for (Tensor& chances : probability) {
    chances = in_type("probability", chances, task.wide);
    task.probability.push_back(chances.const_data_ptr());
  }
  Tensor labels = torch::stable::new_empty(probability[0], {height, width}, ScalarType::Long);
  Tensor scores = return_scores
                      ? torch::stable::new_empty(probability[0], {task.classes, height, width})
                      : torch::stable::new_empty(probability[0], {0});
  task.labels = labels.mutable_data_ptr<int64_t>();
  task.scores = return_scores ? scores.mutable_data_ptr() : nullptr;
  mfk::cpu::semantic_segmentation(task, mfk::cpu::threads());
  return {std::move(labels), std::move(scores)};
}

std::tuple<Tensor, Tensor> panoptic_owners(const Tensor& scores, const Tensor& embed,
                                           const OptionalTensor& features,
                                           std::vector<int64_t> geometry, int64_t height,
                                           int64_t width, bool confident_only) {
  STD_TORCH_CHECK(geometry.size() == 4, "geometry must hold 4 numbers, got ", geometry.size());
  check_result(height, width);
  mfk::check_shape("scores", scores, {"Q"});
  PanopticOwners task{};
  task.views.push_back(view_of(embed, features, geometry.data()));
  task.height = height;
  task.width = width;
  task.wide = mfk::cpu::is_wide(scores) || is_wide(embed, features);
  task.confident_only = confident_only;
  mfk::check_shape("scores", scores, {embed.size(0)});
  const Tensor chances = in_type("scores", scores, task.wide);
  task.scores = chances.const_data_ptr();
  Tensor owners = torch::stable::new_empty(scores, {height, width}, ScalarType::Int);
  Tensor counts = torch::stable::new_empty(scores, {scores.size(0), 3}, ScalarType::Long);
  task.owners = owners.mutable_data_ptr<int32_t>();
  task.counts = counts.mutable_data_ptr<int64_t>();
  mfk::cpu::panoptic_owners(task, mfk::cpu::threads());
  return {std::move(owners), std::move(counts)};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("semantic_segmentation", TORCH_BOX(&semantic_segmentation));
  m.impl("panoptic_owners", TORCH_BOX(&panoptic_owners));
}

}  // namespace
