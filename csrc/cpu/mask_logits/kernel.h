// The part of the mask logits that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/common/pairs.h"
#include "cpu/mask_logits/plan.h"

namespace mfk::cpu {

template <class T>
struct MaskLogitsKernel {
  int64_t (*bytes)(const MaskLogitsProblem& problem, int64_t rows);  // working memory of one thread
  // Computes low-resolution rows [first, last) of the logits of an image.
  void (*run)(const MaskLogitsProblem& problem, const Embeddings<T>& embed, int64_t image,
              int64_t first, int64_t last, void* memory);
};

MFK_DECLARE_KERNEL(PerType<MaskLogitsKernel>, mask_logits);

}  // namespace mfk::cpu
