// Bilinear sampling of images at points, on the CPU. This file does not use torch.
#pragma once

#include "core/element.h"

namespace mfk::cpu {

struct SamplePointsProblem {
  const void* images;  // [M, h, w]
  bool images_are_bool;
  Element element;  // of the images, unless they are bool
  int64_t count, height, width;
  const void* points;  // [M, P, 2], or [1, P, 2] for all: x and y, from 0 to 1 from edge to edge
  bool shared;
  int64_t points_per_image;  // P
  bool is_double;            // compute in fp64, otherwise fp32; also the type of points and values

  void* values;       // [M, P]: output of the forward pass; in the backward pass, its gradient
  void* grad_images;  // like the images, in their type; the backward pass only
};

void sample_points(const SamplePointsProblem& problem, int threads);
void sample_points_backward(const SamplePointsProblem& problem, int threads);

}  // namespace mfk::cpu
