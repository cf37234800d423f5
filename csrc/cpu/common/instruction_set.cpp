#include "cpu/common/instruction_set.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace mfk::cpu {
namespace {

// Checks every feature of the levels that kernels.cmake compiles for, x86-64-v3 and -v4, as a
// virtual machine may hide some of them.
InstructionSet best_supported() {
#if defined(MFK_HAS_AVX2) || defined(MFK_HAS_AVX512)
  const bool has_v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                      __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
                      __builtin_cpu_supports("movbe");
#if defined(MFK_HAS_AVX512)
  const bool has_v4 = has_v3 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (has_v4 && __builtin_cpu_supports("avx512bf16")) return InstructionSet::kAvx512Bf16;
  if (has_v4) return InstructionSet::kAvx512;
#endif
#if defined(MFK_HAS_AVX2)
  if (has_v3) return InstructionSet::kAvx2;
#endif
#endif
  return InstructionSet::kBaseline;
}

InstructionSet detect() {
  const InstructionSet best = best_supported();
  const char* requested = std::getenv("MFKERNELS_ISA");
  if (requested == nullptr || *requested == '\0') return best;
  for (const auto set : {InstructionSet::kBaseline, InstructionSet::kAvx2, InstructionSet::kAvx512,
                         InstructionSet::kAvx512Bf16}) {
    if (std::string_view(requested) == name(set)) return std::min(best, set);
  }
  std::fprintf(stderr,
               "mfkernels: MFKERNELS_ISA is '%s', expected baseline, avx2, avx512 or avx512_bf16; "
               "it has no effect\n",
               requested);
  return best;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet set = detect();
  return set;
}

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512Bf16:
      return "avx512_bf16";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kBaseline:
      break;
  }
  return "baseline";
}

}  // namespace mfk::cpu
