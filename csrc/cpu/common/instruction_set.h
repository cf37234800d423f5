// The vector instructions of this processor, detected once.
#pragma once

#include <type_traits>

namespace mfk::cpu {

enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// The best instruction set that kernels were compiled for and that this processor has. The
// environment variable MFKERNELS_ISA ("baseline", "avx2", "avx512" or "avx512_bf16") limits it. The
// kernels for AVX-512 use AVX512_BF16 if they are given pairs (see pairs.h).
InstructionSet instruction_set();

const char* name(InstructionSet set);

template <class Kernel>
const Kernel& choose(const Kernel& baseline, const Kernel& avx2, const Kernel& avx512) {
  switch (instruction_set()) {
    case InstructionSet::kAvx512Bf16:
    case InstructionSet::kAvx512:
      return avx512;
    case InstructionSet::kAvx2:
      return avx2;
    case InstructionSet::kBaseline:
      break;
  }
  return baseline;
}

// The functions of a kernel for the two types that it computes in.
template <template <class> class Kernel>
struct PerType {
  Kernel<float> f32;
  Kernel<double> f64;

  template <class T>
  const Kernel<T>& of() const {
    if constexpr (std::is_same_v<T, double>) {
      return f64;
    } else {
      return f32;
    }
  }
};

}  // namespace mfk::cpu

// Declares the kernels that <operation>/kernel.cpp defines, one for each instruction set; and
// selects the best one for this processor.
#define MFK_DECLARE_KERNEL(Kernel, operation) \
  extern const Kernel operation##_baseline;   \
  extern const Kernel operation##_avx2;       \
  extern const Kernel operation##_avx512
#define MFK_BEST_KERNEL(operation) \
  choose(operation##_baseline, MFK_AVX2_KERNEL(operation), MFK_AVX512_KERNEL(operation))

#ifdef MFK_HAS_AVX2
#define MFK_AVX2_KERNEL(operation) operation##_avx2
#else
#define MFK_AVX2_KERNEL(operation) operation##_baseline
#endif
#ifdef MFK_HAS_AVX512
#define MFK_AVX512_KERNEL(operation) operation##_avx512
#else
#define MFK_AVX512_KERNEL(operation) MFK_AVX2_KERNEL(operation)
#endif
