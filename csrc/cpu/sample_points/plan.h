// Images at points between their pixels, on the CPU. No torch in here.
#pragma once

#include "core/element.h"

namespace mfk::cpu {

struct SamplePointsProblem {
  const void* images;  // [M, h, w]
  bool images_are_bool;
  Element element;  // unless they are
  int64_t count, height, width;
  const void* points;  // [M, P, 2], or [1, P, 2] for all: x and y, the image from 0 to 1
  bool shared;
  int64_t points_per_image;  // P
  bool is_double;            // in fp64; else fp32, and so are points and values

  void* values;       // [M, P]: out of the forward pass; its gradient, into the backward pass
  void* grad_images;  // like the images, in their type; the backward pass only
};

void sample_points(const SamplePointsProblem& problem, int threads);
void sample_points_backward(const SamplePointsProblem& problem, int threads);

}  // namespace mfk::cpu
