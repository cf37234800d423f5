// Which vector instructions this processor has, asked once.
#pragma once

namespace mfk::cpu {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// The best one that was compiled and that runs here. The environment variable MFKERNELS_ISA
// ("baseline", "avx2" or "avx512") lowers it.
InstructionSet instruction_set();

const char* name(InstructionSet set);

}  // namespace mfk::cpu
