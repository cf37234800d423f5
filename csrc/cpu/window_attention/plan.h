// Self-attention inside of the windows of a map (Swin), on the CPU. This file does not use torch.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace mfk::cpu {

// Maps [B, h, w] of tokens with H heads of D channels. They are padded to whole windows at the
// bottom and on the right, then shifted up and to the left in a cycle. N: the tokens of a window.
struct WindowAttentionProblem {
  Element element;  // of qkv, result and their gradients; all else is fp64 if they are, or fp32
  int64_t images, height, width, heads, channels;
  int64_t window_height, window_width;
  int64_t shift_height, shift_width;  // smaller than the window
  const void* qkv;                    // [B, h, w, 3, H, D]: queries, keys, values
  const void* padding;                // [3, H, D]: the same of each token of the padding
  const void* bias;                   // [H, N, N]: added to the scaled scores
  void* result;                       // [B, h, w, H, D]: output of the forward pass
  // [windows, H, 2, N]: the largest score of each token, and the sum of exponentials of differences
  // from it; an output of the forward pass, and an input of the backward pass.
  void* normalizer;
  const void* grad_result;  // the backward pass only, as all that follows
  void* grad_qkv;
  void* grad_padding;
  void* grad_bias;
};

// The number of windows of all images.
int64_t window_count(const WindowAttentionProblem& problem);

void window_attention(const WindowAttentionProblem& problem, int threads);
void window_attention_backward(const WindowAttentionProblem& problem, int threads);

}  // namespace mfk::cpu
