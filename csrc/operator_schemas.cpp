// The schema of every operator that has a kernel. Implementations register themselves beside their
// kernels: those in C++ and CUDA in this folder, those in Triton in mfkernels/ops/.
// (`mfkernels::assignment_reference` wraps SciPy and must be there without this library too: Python
// defines it.)
//
// Letters: L layers, B images, Q queries, K classes, C channels, h x w mask resolution, H x W that of
// the targets, N segments in all, T the most of one image, M masks, P elements of one.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mfkernels, m) {
  m.def(
      "assignment(Tensor cost, Tensor? row_counts, Tensor? col_counts, bool maximize, bool strict) "
      "-> (Tensor assignment, Tensor status)");

  // Masks: `mask_embed` [L, B, Q, C] with `pixel_features` [B, C, h, w], or logits [L, B, Q, h, w]
  // with none. Segments: `counts` [B] int64 and either `label_map` [B, H, W] int16 or `masks`
  // [N, H, W] bool. Results are fp64 where a floating-point input is, else fp32.

  // [L, B, Q, h, w], in the type that both factors have.
  m.def("mask_logits(Tensor mask_embed, Tensor pixel_features) -> Tensor logits");

  // `class_logits` [L, B, Q, K+1], `labels` [N] int64, `max_count` T; the cost is [L, B, Q, T], 0
  // beyond an image's own segments and NaN for a label outside [0, K).
  m.def(
      "matching_cost(Tensor class_logits, Tensor mask_embed, Tensor? pixel_features, "
      "Tensor? label_map, Tensor? masks, Tensor labels, Tensor counts, SymInt max_count, "
      "float class_weight, float mask_weight, float dice_weight, float alpha, float gamma) "
      "-> Tensor cost");

  // `assignment` [L, B, T] int64: the query of each segment or -1. `focal` and `dice` [L, B, T]: the
  // losses of each segment, focal as the mean over H x W; 0 without a query. `sums` [L, B, T, 3] for
  // the backward pass, over the pixels of H x W: s y, s and y (s = sigmoid of the logit, y = target).
  // `maps` [3, L, N, h w]: with `keep_maps`, gradients of what the losses are made of, which spare
  // the backward pass the pixels of H x W; [0] if the implementation does not keep them. N is
  // `num_segments`: the sum of `counts`, or more. On a GPU nobody checks either of them.
  m.def(
      "mask_loss(Tensor mask_embed, Tensor? pixel_features, Tensor? label_map, Tensor? masks, "
      "Tensor counts, Tensor assignment, SymInt num_segments, float alpha, float gamma, "
      "bool keep_maps) "
      "-> (Tensor focal, Tensor dice, Tensor sums, Tensor maps)");

  // Gradients in the shapes and dtypes of `mask_embed` and `pixel_features`; an empty tensor [0] for
  // one that is not needed or not there.
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

  // `images` [M, h, w] (bool or floating point) at `points` [M, P, 2], or [1, P, 2] for all (x and y,
  // the image from 0 to 1), bilinearly with zeros outside: [M, P] in the type of `points`, fp32 or
  // fp64. The gradient has the type of `images`.
  m.def("sample_points(Tensor images, Tensor points) -> Tensor values");
  m.def(
      "sample_points_backward(Tensor grad_values, Tensor images, Tensor points) "
      "-> Tensor grad_images");

  // Focal and dice loss at `points` [M, P, 2] of logits [M, h, w] and targets [M, H, W], both read so.
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

  // The class loss. `labels` [N], `counts` [B] and `assignment` [L, B, T] int64 as above. The cross
  // entropy of `class_logits` [L, B, Q, K+1], in which a query without a segment is of the class "no
  // object", K, with `no_object_weight`: `loss` and `weight` [L], the sum of the weighted losses and that
  // of the weights, fp32. For the backward pass `normalizer` [L, B, Q] fp32, the logarithm of the sum of
  // exponentials, and `target` [L, B, Q] int32, the class of each query.
  m.def(
      "class_loss(Tensor class_logits, Tensor labels, Tensor counts, Tensor assignment, "
      "float no_object_weight) -> (Tensor loss, Tensor weight, Tensor normalizer, Tensor target)");
  m.def(
      "class_loss_backward(Tensor grad_loss, Tensor class_logits, Tensor normalizer, "
      "Tensor target, float no_object_weight) -> Tensor grad_class_logits");

  // A convolution of maps [B, C, h, w] with weights [O, C, 3, 3], stride 1 and zeros around: [B, O, h,
  // w], channels last in memory. All in fp32 or all in fp64, or maps in bf16 and weights in fp32; C and
  // O in multiples of 16.
  m.def("conv3x3(Tensor x, Tensor weight, Tensor? bias) -> Tensor y");
  m.def("conv3x3_weight_grad(Tensor grad_y, Tensor x) -> Tensor grad_weight");

  // Inference on one image. A view of it is the image, of the given height and width, in the upper
  // left of a padded input. Masks are resized from h x w to the padded input, cut to the image and
  // resized to the result (`height`, `width`), all bilinearly.

  // Lists hold an entry for each view; `flipped`: it is mirrored left to right, and its result is
  // mirrored back. `probability` [Q, K], fp32 or fp64, whose scores are added up; masks as above, each
  // without L and B, and no `pixel_features` where they are logits. The sigmoid is taken at the size
  // of the input or, with `resize_logits`, of the result. A query too improbable to change a label may
  // be left out, also one whose mask is NaN. `labels` [H, W] int64: the first class of
  // the largest score. `scores` [K, H, W], or [0] where they are not wanted.
  m.def(
      "semantic_segmentation(Tensor[] probability, Tensor[] mask_embed, Tensor[] pixel_features, "
      "int[] padded_heights, int[] padded_widths, int[] image_heights, int[] image_widths, "
      "bool[] flipped, int height, int width, bool resize_logits, bool return_scores) "
      "-> (Tensor labels, Tensor scores)");

  // `scores` [Q], fp32 or fp64, negative for a query that is left out. `owners` [H, W] int32: the
  // first query of the largest score * sigmoid(mask), which NaN never is; -1: none or, with
  // `confident_only`, one whose sigmoid is below 0.5. `counts` [Q, 3] int64: the pixels that a query
  // owns (confident or not), those where its sigmoid is at least 0.5, and those of `owners`.
  m.def(
      "panoptic_owners(Tensor scores, Tensor mask_embed, Tensor? pixel_features, int "
      "padded_height, "
      "int padded_width, int image_height, int image_width, int height, int width, "
      "bool confident_only) -> (Tensor owners, Tensor counts)");
}
