// The schema of every operator that has a kernel. Implementations are registered beside their
// kernels: those in C++ and CUDA in this folder, those in Triton in mfkernels/ops/.
// (`mfkernels::assignment_reference` wraps SciPy and must exist without this library too, so that
// Python defines it.)
//
// Letters: L layers, B images, Q queries, K classes, C channels, h x w mask resolution, H x W
// target resolution, N segments in all images, T the largest number of segments per image, M masks,
// P elements per mask.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mfkernels, m) {
  m.def(
      "assignment(Tensor cost, Tensor? row_counts, Tensor? col_counts, bool maximize, bool strict) "
      "-> (Tensor assignment, Tensor status)");

  // Masks: `mask_embed` [L, B, Q, C] with `pixel_features` [B, C, h, w], or logits [L, B, Q, h, w]
  // without. Segments: `counts` [B] int64 and either `label_map` [B, H, W] int16 or `masks` [N, H,
  // W] bool. Results are fp64 if a floating-point input is, otherwise fp32.

  // [L, B, Q, h, w], in the common type of both factors.
  m.def("mask_logits(Tensor mask_embed, Tensor pixel_features) -> Tensor logits");

  // `class_logits` [L, B, Q, K+1], `labels` [N] int64, `max_count` T; the cost is [L, B, Q, T], 0
  // beyond an image's own segments and NaN for a label outside [0, K).
  m.def(
      "matching_cost(Tensor class_logits, Tensor mask_embed, Tensor? pixel_features, "
      "Tensor? label_map, Tensor? masks, Tensor labels, Tensor counts, SymInt max_count, "
      "float class_weight, float mask_weight, float dice_weight, float alpha, float gamma) "
      "-> Tensor cost");

  // `assignment` [L, B, T] int64: the query of each segment or -1. `focal` and `dice` [L, B, T]:
  // the losses of each segment, focal as the mean over H x W; 0 without a query. `sums` [L, B, T,
  // 3] for the backward pass, over the pixels of H x W: s y, s and y (s = sigmoid of the logit, y =
  // target). `maps` [3, L, N, h w]: with `keep_maps`, parts of the gradient at mask resolution,
  // with which the backward pass need not visit the pixels of H x W again; [0] if the
  // implementation does not keep them. N is `num_segments`: the sum of `counts`, or more. On a GPU,
  // neither is checked.
  m.def(
      "mask_loss(Tensor mask_embed, Tensor? pixel_features, Tensor? label_map, Tensor? masks, "
      "Tensor counts, Tensor assignment, SymInt num_segments, float alpha, float gamma, "
      "bool keep_maps) "
      "-> (Tensor focal, Tensor dice, Tensor sums, Tensor maps)");

  // Gradients with the shapes and dtypes of `mask_embed` and `pixel_features`; an empty tensor [0]
  // for one that is not needed or does not exist.
  m.def(
      "mask_loss_backward(Tensor grad_focal, Tensor grad_dice, Tensor sums, Tensor maps, "
      "Tensor mask_embed, Tensor? pixel_features, Tensor? label_map, Tensor? masks, "
      "Tensor counts, Tensor assignment, SymInt num_segments, float alpha, float gamma, "
      "bool embed_needed, bool features_needed) "
      "-> (Tensor grad_embed, Tensor grad_features)");

  // The same losses of logits and targets [M, P] (bool, or numbers from 0 to 1): `focal` and `dice`
  // [M], `sums` [M, 3].
  m.def(
      "focal_dice(Tensor logits, Tensor targets, float alpha, float gamma) "
      "-> (Tensor focal, Tensor dice, Tensor sums)");
  m.def(
      "focal_dice_backward(Tensor grad_focal, Tensor grad_dice, Tensor sums, Tensor logits, "
      "Tensor targets, float alpha, float gamma) -> Tensor grad_logits");

  // Samples `images` [M, h, w] (bool or floating point) bilinearly, with zeros outside, at `points`
  // [M, P, 2], or [1, P, 2] for all images. A point is x and y, from 0 to 1 from edge to edge. The
  // result is [M, P] in the type of `points`, fp32 or fp64. The gradient has the type of `images`.
  m.def("sample_points(Tensor images, Tensor points) -> Tensor values");
  m.def(
      "sample_points_backward(Tensor grad_values, Tensor images, Tensor points) "
      "-> Tensor grad_images");

  // Focal and dice loss of logits [M, h, w] and targets [M, H, W], both sampled at `points` [M, P,
  // 2].
  m.def(
      "point_loss(Tensor logits, Tensor targets, Tensor points, float alpha, float gamma) "
      "-> (Tensor focal, Tensor dice, Tensor sums)");
  m.def(
      "point_loss_backward(Tensor grad_focal, Tensor grad_dice, Tensor sums, Tensor logits, "
      "Tensor targets, Tensor points, float alpha, float gamma) -> Tensor grad_logits");

  // The focal loss of each element, in the shape and dtype of `logits`.
  m.def(
      "sigmoid_focal_loss(Tensor logits, Tensor targets, float alpha, float gamma) "
      "-> Tensor losses");
  m.def(
      "sigmoid_focal_loss_backward(Tensor grad_losses, Tensor logits, Tensor targets, "
      "float alpha, float gamma) -> Tensor grad_logits");

  // The class loss: weighted cross-entropy of `class_logits` [L, B, Q, K+1]. `labels` [N], `counts`
  // [B] and `assignment` [L, B, T] int64 as above. A query without a segment has the class K, "no
  // object", with the weight `no_object_weight`. `loss` and `weight` [L] fp32: the sum of the
  // weighted losses, and that of the weights. For the backward pass: `normalizer` [L, B, Q] fp32,
  // the logarithm of the sum of exponentials, and `target` [L, B, Q] int32, the class of each
  // query.
  m.def(
      "class_loss(Tensor class_logits, Tensor labels, Tensor counts, Tensor assignment, "
      "float no_object_weight) -> (Tensor loss, Tensor weight, Tensor normalizer, Tensor target)");
  m.def(
      "class_loss_backward(Tensor grad_loss, Tensor class_logits, Tensor normalizer, "
      "Tensor target, float no_object_weight) -> Tensor grad_class_logits");

  // A convolution of maps [B, C, h, w] with weights [O, C, 3, 3], with stride 1 and zero padding 1.
  // The result is [B, O, h, w] in channels-last memory format. All are fp32 or all are fp64, or
  // maps are bf16 and weights fp32; C and O are multiples of 16.
  m.def("conv3x3(Tensor x, Tensor weight, Tensor? bias) -> Tensor y");
  m.def("conv3x3_weight_grad(Tensor grad_y, Tensor x) -> Tensor grad_weight");

  // Group norm of maps [B, C, h, w] with `weight` and `bias` [C], followed by ReLU if `relu`. The
  // result and `grad_x` are in channels-last memory format; `mean` and `inverse_std` are [B,
  // groups]. All are fp32 or all are fp64, or maps are bf16 and the rest fp32; C is a multiple of
  // 16.
  m.def(
      "group_norm(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool relu) "
      "-> (Tensor y, Tensor mean, Tensor inverse_std)");
  m.def(
      "group_norm_backward(Tensor grad_y, Tensor mean, Tensor inverse_std, Tensor x, "
      "Tensor weight, Tensor bias, int groups, bool relu) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");

  // Self-attention inside of the windows of maps [B, h, w] of tokens. `qkv` [B, h, w, 3, H, D]:
  // queries, keys and values of H heads; `padding` [3, H, D]: those of each token by which maps are
  // padded to whole windows, at the bottom and on the right. Padded maps are shifted up and to the
  // left in a cycle, by less than a window; windows have N tokens. `bias` [H, N, N] is added to the
  // scaled scores, and -100 if the shift brought two tokens together. `result` [B, h, w, H, D].
  // `normalizer` [windows, H, 2, N]: the largest score of each token, and the sum of exponentials
  // of differences from it, for the backward pass. All are fp32 or all are fp64, or qkv, the result
  // and their gradients are bf16 and the rest fp32; D is a multiple of 16.
  m.def(
      "window_attention(Tensor qkv, Tensor padding, Tensor bias, int window_height, "
      "int window_width, int shift_height, int shift_width) -> (Tensor result, Tensor normalizer)");
  m.def(
      "window_attention_backward(Tensor grad_result, Tensor normalizer, Tensor qkv, "
      "Tensor padding, Tensor bias, int window_height, int window_width, int shift_height, "
      "int shift_width) -> (Tensor grad_qkv, Tensor grad_padding, Tensor grad_bias)");

  // Inference for one image. In a view, the image, of the given height and width, is the upper left
  // part of a padded input. Masks are resized from h x w to the padded input, cropped to the image
  // and resized to the result (`height`, `width`), all bilinearly.

  // Lists have one entry per view. `flipped`: the view is flipped left to right, and its result is
  // flipped back. `probability` [Q, K], fp32 or fp64; the scores of views are added up. Masks are
  // as above, without L and B, and there are no `pixel_features` if they are logits. The sigmoid is
  // applied at the size of the input or, with `resize_logits`, of the result. A query that is too
  // improbable to change a label may be skipped, even if its mask is NaN. `labels` [H, W] int64:
  // the first class with the largest score. `scores` [K, H, W], or [0] without `return_scores`.
  m.def(
      "semantic_segmentation(Tensor[] probability, Tensor[] mask_embed, Tensor[] pixel_features, "
      "int[] padded_heights, int[] padded_widths, int[] image_heights, int[] image_widths, "
      "bool[] flipped, int height, int width, bool resize_logits, bool return_scores) "
      "-> (Tensor labels, Tensor scores)");

  // `scores` [Q], fp32 or fp64, negative for a query that is not kept. `owners` [H, W] int32: the
  // first query with the largest score * sigmoid(mask), which is never NaN; -1: none, or with
  // `confident_only`, one whose sigmoid is below 0.5. `counts` [Q, 3] int64: the number of pixels
  // that a query owns (confident or not), of those where its sigmoid is at least 0.5, and of those
  // it has in `owners`.
  m.def(
      "panoptic_owners(Tensor scores, Tensor mask_embed, Tensor? pixel_features, int "
      "padded_height, "
      "int padded_width, int image_height, int image_width, int height, int width, "
      "bool confident_only) -> (Tensor owners, Tensor counts)");
}
