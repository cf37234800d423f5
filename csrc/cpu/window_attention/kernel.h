// The part of window attention that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/window_attention/plan.h"

namespace mfk::cpu {

// One head in some windows.
struct HeadWindows {
  int64_t head, first, last;
};

// Gradients of one head that windows share, to which the kernel adds.
template <class T>
struct SharedGradients {
  T* bias;        // [N, N]
  T* padding[3];  // [D] each
};

template <class T>
struct WindowAttentionKernel {
  // Working memory of one thread.
  int64_t (*bytes)(const WindowAttentionProblem& problem);
  void (*forward)(const WindowAttentionProblem& problem, HeadWindows windows, void* memory);
  void (*backward)(const WindowAttentionProblem& problem, HeadWindows windows,
                   SharedGradients<T> shared, void* memory);
};

MFK_DECLARE_KERNEL(PerType<WindowAttentionKernel>, window_attention);

}  // namespace mfk::cpu
