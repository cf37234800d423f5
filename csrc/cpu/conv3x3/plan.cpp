#include "cpu/conv3x3/plan.h"

#include <algorithm>
#include <cstring>

#include "cpu/common/parallel.h"
#include "cpu/conv3x3/kernel.h"

namespace mfk::cpu {
namespace {

// Tiles of a task: transformed, they and some panels of weights fill a typical L2 cache.
constexpr int64_t kTaskTiles = 24;
// Entries of the transformed tiles of a block, for the gradient of the weight: few enough that
// those at one point stay in a typical L2 cache, next to their sums.
constexpr int64_t kBlockEntries = int64_t{1} << 20;
// Tiles of a block at least, whatever the number of channels: each block reads and writes all sums.
constexpr int64_t kBlockTiles = 64;

int64_t tiles_of(const Conv3x3Problem& problem) {
  return problem.images * divide_up(problem.height, 4) * divide_up(problem.width, 4);
}

template <class T>
T* take(Block& memory, int64_t entries) {
  const int64_t bytes = entries * static_cast<int64_t>(sizeof(T));
  memory = allocate(bytes);
  prefer_large_pages(memory.get(), bytes);
  return static_cast<T*>(memory.get());
}

template <class T>
void forward(const Conv3x3Problem& problem, int threads) {
  const Conv3x3Kernel<T>& kernel = MFK_BEST_KERNEL(conv3x3).of<T>();
  const int64_t panels = divide_up(problem.out_channels, kernel.panel);
  const int64_t entries = kPoints * problem.in_channels * kernel.panel;  // of a panel
  Block memory;
  T* weight = take<T>(memory, panels * entries);
  for_each(panels, threads,
           [&](int64_t p) { kernel.transform_weight(problem, p, weight + p * entries); });
  const int64_t tiles = tiles_of(problem);
  for_each(divide_up(tiles, kTaskTiles), threads, kernel.bytes(problem, kTaskTiles),
           [&](int64_t task, void* working_memory) {
             const int64_t first = task * kTaskTiles;
             kernel.forward(problem, weight, first, std::min(tiles, first + kTaskTiles),
                            working_memory);
           });
}

template <class T>
void weight_grad(const Conv3x3Problem& problem, int threads) {
  const Conv3x3Kernel<T>& kernel = MFK_BEST_KERNEL(conv3x3).of<T>();
  const int64_t out_row = round_up(problem.out_channels, kernel.panel);
  const int64_t row = std::max(kernel.input_row(problem), out_row);
  const int64_t tiles = tiles_of(problem);
  const int64_t most = std::max(kBlockEntries / (kPoints * row), kBlockTiles);
  const int64_t block = divide_up(tiles, std::max<int64_t>(divide_up(tiles, most), 1));
  Block input_memory, grad_memory, sum_memory, zero_memory;
  T* inputs = take<T>(input_memory, kPoints * block * kernel.input_row(problem));
  T* grads = take<T>(grad_memory, kPoints * block * out_row);
  const int64_t sum_entries = kPoints * problem.in_channels * out_row;
  T* sums = take<T>(sum_memory, sum_entries);
  T* zeros = take<T>(zero_memory, row);
  std::fill_n(sums, sum_entries, T{0});
  std::fill_n(zeros, row, T{0});
  for (int64_t first = 0; first < tiles; first += block) {
    const int64_t count = std::min(block, tiles - first);
    for_each_with_affinity(count, threads, [&](int64_t t) {
      kernel.transform_tile(problem, first, count, t, zeros, inputs, grads);
    });
    for_each_with_affinity(kPoints, threads, [&](int64_t point) {
      kernel.add_products(problem, count, point, inputs, grads, sums);
    });
  }
  for_each(problem.in_channels, threads,
           [&](int64_t channel) { kernel.finish_weight(problem, channel, sums); });
}

}  // namespace

void conv3x3(const Conv3x3Problem& problem, int threads) {
  const bool is_double = problem.element == Element::kDouble;
  is_double ? forward<double>(problem, threads) : forward<float>(problem, threads);
}

void conv3x3_weight_grad(const Conv3x3Problem& problem, int threads) {
  const bool is_double = problem.element == Element::kDouble;
  is_double ? weight_grad<double>(problem, threads) : weight_grad<float>(problem, threads);
}

}  // namespace mfk::cpu
