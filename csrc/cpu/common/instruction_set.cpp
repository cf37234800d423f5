#include "cpu/common/instruction_set.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace mfk::cpu {
namespace {

InstructionSet detect() {
  InstructionSet best = InstructionSet::kBaseline;
#if defined(MFK_HAS_AVX2) || defined(MFK_HAS_AVX512)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best = InstructionSet::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
      best = InstructionSet::kAvx512;
    }
  }
#endif
  const char* wish = std::getenv("MFKERNELS_ISA");
  if (wish == nullptr) return best;
  for (const auto set :
       {InstructionSet::kBaseline, InstructionSet::kAvx2, InstructionSet::kAvx512}) {
    if (std::string_view(wish) == name(set)) return std::min(best, set);
  }
  return best;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet set = detect();
  return set;
}

const char* name(InstructionSet set) {
  switch (set) {
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
