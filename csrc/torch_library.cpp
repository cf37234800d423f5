// The schema of every operator. Implementations register themselves beside their kernels.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mfkernels, m) {
  m.def(
      "assignment(Tensor cost, Tensor? row_counts, Tensor? col_counts, bool maximize, bool strict) "
      "-> (Tensor assignment, Tensor status)");
}
