// The tensor operator `assignment` on CUDA: all problems in one launch, one warp each, or eight warps
// where there are many columns.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "core/assignment_batch.h"
#include "core/integers.h"
#include "tensors/assignment_batch.h"

namespace {

using mfk::Element;
using mfk::assignment::Batch;
using mfk::assignment::Nearest;
using mfk::assignment::TwoLeast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr unsigned kAll = 0xffffffffu;

// Order-preserving integer of a double; -0 equals +0.
__device__ __forceinline__ uint64_t key_of(double value) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value + 0.0));
  return bits & 0x8000000000000000u ? ~bits : bits | 0x8000000000000000u;
}

__device__ __forceinline__ double value_of(uint64_t key) {
  const uint64_t bits = key & 0x8000000000000000u ? key & 0x7fffffffffffffffu : ~key;
  return __longlong_as_double(static_cast<long long>(bits));
}

__device__ __forceinline__ Nearest nearest_in_warp(const Nearest& mine) {
  const uint64_t key = key_of(mine.distance);
  const uint32_t high = static_cast<uint32_t>(key >> 32);
  const uint32_t low = static_cast<uint32_t>(key);
  const uint32_t least_high = __reduce_min_sync(kAll, high);
  const uint32_t least_low = __reduce_min_sync(kAll, high == least_high ? low : ~0u);
  const bool tie = high == least_high && low == least_low;
  const int32_t rank = __reduce_min_sync(kAll, tie ? mine.rank : INT32_MAX);
  const unsigned winners = __ballot_sync(kAll, tie && mine.rank == rank);
  const int32_t column = __shfl_sync(kAll, mine.column, __ffs(winners) - 1);
  return {value_of(static_cast<uint64_t>(least_high) << 32 | least_low), rank, column};
}

__device__ __forceinline__ TwoLeast join(const TwoLeast& a, const TwoLeast& b) {
  const bool first = a.least < b.least || (a.least == b.least && a.column <= b.column);
  const double least = first ? a.least : b.least;
  const double other = first ? b.least : a.least;
  const double second = a.second < b.second ? a.second : b.second;
  return {least, other < second ? other : second, first ? a.column : b.column};
}

__device__ __forceinline__ TwoLeast two_least_in_warp(TwoLeast mine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const TwoLeast other{__shfl_xor_sync(kAll, mine.least, offset),
                         __shfl_xor_sync(kAll, mine.second, offset),
                         __shfl_xor_sync(kAll, mine.column, offset)};
    mine = join(mine, other);
  }
  return mine;
}

__device__ __forceinline__ void claim_slot(int32_t* slot, int32_t row) {
  atomicMin(reinterpret_cast<unsigned*>(slot), static_cast<unsigned>(row));
}

struct Warp {
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ int lanes() const { return 32; }
  __device__ void sync() const { __syncwarp(); }
  __device__ Nearest nearest(const Nearest& mine) const { return nearest_in_warp(mine); }
  __device__ TwoLeast two_least(const TwoLeast& mine) const { return two_least_in_warp(mine); }
  __device__ static void claim(int32_t* slot, int32_t row) { claim_slot(slot, row); }
  __device__ void write_union(int32_t* word, int32_t bits) const {
    const unsigned all = __reduce_or_sync(kAll, static_cast<unsigned>(bits));
    if (lane() == 0) *word = static_cast<int32_t>(all);
  }
};

// Warps exchange what they found through two turns of slots, so one barrier a reduction is enough.
template <int kWarps>
struct Block {
  struct Slots {
    Nearest nearest[2][kWarps];
    TwoLeast two_least[2][kWarps];
    unsigned bits[kWarps];
  };

  Slots* slots;
  mutable int turn = 0;

  __device__ explicit Block(Slots* shared) : slots(shared) {}
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ int lanes() const { return 32 * kWarps; }
  __device__ int warp() const { return static_cast<int>(threadIdx.x) / 32; }
  __device__ bool leads() const { return threadIdx.x % 32 == 0; }
  __device__ void sync() const { __syncthreads(); }

  __device__ Nearest nearest(const Nearest& mine) const {
    turn ^= 1;
    const Nearest of_warp = nearest_in_warp(mine);
    if (leads()) slots->nearest[turn][warp()] = of_warp;
    __syncthreads();
    Nearest best = slots->nearest[turn][0];
    for (int w = 1; w < kWarps; ++w) {
      const Nearest other = slots->nearest[turn][w];
      if (other < best) best = other;
    }
    return best;
  }

  __device__ TwoLeast two_least(const TwoLeast& mine) const {
    turn ^= 1;
    const TwoLeast of_warp = two_least_in_warp(mine);
    if (leads()) slots->two_least[turn][warp()] = of_warp;
    __syncthreads();
    TwoLeast best = slots->two_least[turn][0];
    for (int w = 1; w < kWarps; ++w) best = join(best, slots->two_least[turn][w]);
    return best;
  }

  __device__ static void claim(int32_t* slot, int32_t row) { claim_slot(slot, row); }

  __device__ void write_union(int32_t* word, int32_t bits) const {
    const unsigned of_warp = __reduce_or_sync(kAll, static_cast<unsigned>(bits));
    if (leads()) slots->bits[warp()] = of_warp;
    __syncthreads();
    if (lane() != 0) return;
    unsigned all = 0;
    for (int w = 0; w < kWarps; ++w) all |= slots->bits[w];
    *word = static_cast<int32_t>(all);
  }
};

extern __shared__ double shared_memory[];

// One warp, everything in shared memory.
template <class T, bool kStrict>
__global__ void __launch_bounds__(32, 1) solve_on_chip(const Batch batch, int64_t arrays) {
  char* memory = reinterpret_cast<char*>(shared_memory);
  T* dense = reinterpret_cast<T*>(memory + arrays);
  mfk::assignment::solve_problem<kStrict, T>(Warp{}, batch, blockIdx.x, memory, dense);
}

struct OffChip {
  char* arrays;  // null: in shared memory
  int64_t array_bytes;
  char* costs;
  int64_t cost_bytes;
};

// Costs in global memory, from where they come through the L2 cache.
template <class T, bool kStrict>
__global__ void __launch_bounds__(32, 1) solve_warp(const Batch batch, const OffChip off) {
  const int64_t problem = blockIdx.x;
  char* memory =
      off.arrays ? off.arrays + problem * off.array_bytes : reinterpret_cast<char*>(shared_memory);
  T* dense = reinterpret_cast<T*>(off.costs + problem * off.cost_bytes);
  mfk::assignment::solve_problem<kStrict, T>(Warp{}, batch, problem, memory, dense);
}

constexpr int kWarps = 8;

template <class T, bool kStrict>
__global__ void __launch_bounds__(32 * kWarps, 1)
    solve_block(const Batch batch, const OffChip off) {
  __shared__ typename Block<kWarps>::Slots slots;
  const int64_t problem = blockIdx.x;
  char* memory =
      off.arrays ? off.arrays + problem * off.array_bytes : reinterpret_cast<char*>(shared_memory);
  T* dense = reinterpret_cast<T*>(off.costs + problem * off.cost_bytes);
  mfk::assignment::solve_problem<kStrict, T>(Block<kWarps>(&slots), batch, problem, memory, dense);
}

// From this many columns a problem gets eight warps.
constexpr int64_t kManyColumns = 512;
// Shared memory that every problem may use whatever the number of problems.
constexpr int64_t kModestBytes = 48 * 1024;
// Static shared memory and what the system reserves for each block.
constexpr int64_t kReservedBytes = 2 * 1024;

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, int64_t problems, int threads, int64_t bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  if (bytes > kModestBytes) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
  }
  kernel<<<static_cast<unsigned>(problems), threads, static_cast<size_t>(bytes), stream>>>(
      arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T, bool kStrict>
void solve(const Tensor& cost, const Batch& batch, int device, cudaStream_t stream) {
  const int64_t least = batch.rows < batch.columns ? batch.rows : batch.columns;
  const int64_t most = batch.rows < batch.columns ? batch.columns : batch.rows;
  const int64_t arrays = mfk::assignment::array_bytes(least, most, kStrict);
  const int64_t costs = mfk::round_up(least * mfk::assignment::dense_stride(most) * sizeof(T), 16);
  const int64_t block_limit =
      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - kReservedBytes;
  const int64_t processors = attribute(cudaDevAttrMultiProcessorCount, device);
  const int64_t per_processor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  const int64_t wave = mfk::divide_up(batch.batch, processors);
  const bool one_wave = wave * (arrays + costs + kReservedBytes) <= per_processor;

  if (most <= kManyColumns && arrays + costs <= block_limit &&
      (one_wave || arrays + costs <= kModestBytes)) {
    launch(solve_on_chip<T, kStrict>, batch.batch, 32, arrays + costs, stream, batch, arrays);
    return;
  }
  const bool arrays_fit = arrays <= block_limit;
  const int64_t off_chip = costs + (arrays_fit ? 0 : arrays);
  const Tensor workspace =
      torch::stable::new_empty(cost, {batch.batch * off_chip}, ScalarType::Byte);
  char* memory = static_cast<char*>(workspace.mutable_data_ptr());
  const OffChip off{arrays_fit ? nullptr : memory + batch.batch * costs, arrays, memory, costs};
  const int64_t bytes = arrays_fit ? arrays : 0;
  if (most <= kManyColumns) {
    launch(solve_warp<T, kStrict>, batch.batch, 32, bytes, stream, batch, off);
  } else {
    launch(solve_block<T, kStrict>, batch.batch, 32 * kWarps, bytes, stream, batch, off);
  }
}

// Values are clamped on the device: looking at them here would wait for it.
const int64_t* checked_counts(const char* name, const std::optional<Tensor>& counts,
                              const Tensor& cost) {
  if (!counts.has_value()) return nullptr;
  STD_TORCH_CHECK(counts->is_cuda() && counts->get_device_index() == cost.get_device_index() &&
                      counts->scalar_type() == ScalarType::Long && counts->dim() == 1 &&
                      counts->size(0) == cost.size(0) && counts->is_contiguous(),
                  name, " must be a contiguous int64 tensor of shape [", cost.size(0),
                  "] on the device of cost, got ", mfk::text(*counts));
  return counts->const_data_ptr<int64_t>();
}

std::tuple<Tensor, Tensor> assignment(const Tensor& cost, const std::optional<Tensor>& row_counts,
                                      const std::optional<Tensor>& col_counts, bool maximize,
                                      bool strict) {
  mfk::AssignmentTensors tensors(cost, maximize, strict);
  Batch& batch = tensors.batch;
  batch.row_counts = checked_counts("row_counts", row_counts, cost);
  batch.column_counts = checked_counts("col_counts", col_counts, cost);
  if (batch.batch > 0) {
    const int32_t device = cost.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    void* handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &handle));
    const cudaStream_t stream = static_cast<cudaStream_t>(handle);
    const bool is_double = batch.element == Element::kDouble;
    if (is_double && strict) solve<double, true>(cost, batch, device, stream);
    if (is_double && !strict) solve<double, false>(cost, batch, device, stream);
    if (!is_double && strict) solve<float, true>(cost, batch, device, stream);
    if (!is_double && !strict) solve<float, false>(cost, batch, device, stream);
  }
  return {tensors.assignment, tensors.status};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CUDA, m) { m.impl("assignment", TORCH_BOX(&assignment)); }

}  // namespace
