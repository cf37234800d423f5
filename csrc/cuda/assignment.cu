// The operator `assignment` on CUDA: all problems in one launch, one block per problem. Four warps
// load a problem, and one of them solves it; with many columns, eight warps do both.
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
#include <type_traits>

#include "core/assignment_batch.h"
#include "core/assignment_registers.h"
#include "core/integers.h"
#include "tensors/assignment_batch.h"

namespace {

using mfk::Element;
using mfk::assignment::Batch;
using mfk::assignment::InRegisters;
using mfk::assignment::kVectorOf;
using mfk::assignment::Nearest;
using mfk::assignment::TwoLeast;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr unsigned kAll = 0xffffffffu;

// Maps a double to an integer with the same order. -0 comes before +0, but no search yields it, as
// all start from +0.
__device__ __forceinline__ uint64_t key_of(double value) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value));
  return bits & 0x8000000000000000u ? ~bits : bits | 0x8000000000000000u;
}

// The inverse of `key_of`.
__device__ __forceinline__ double value_of(uint64_t key) {
  const uint64_t bits = key & 0x8000000000000000u ? key & ~0x8000000000000000u : ~key;
  return __longlong_as_double(static_cast<int64_t>(bits));
}

// All lanes take part in each reduction: none is inside a divergent branch.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <class Integer>
__device__ __forceinline__ Integer least_in_warp(Integer value) {
  return __reduce_min_sync(kAll, value);
}

__device__ __forceinline__ unsigned union_in_warp(unsigned bits) {
  return __reduce_or_sync(kAll, bits);
}
#else
template <class Integer>
__device__ __forceinline__ Integer least_in_warp(Integer value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const Integer other = __shfl_xor_sync(kAll, value, lanes);
    value = other < value ? other : value;
  }
  return value;
}

__device__ __forceinline__ unsigned union_in_warp(unsigned bits) {
  for (int lanes = 16; lanes > 0; lanes /= 2) bits |= __shfl_xor_sync(kAll, bits, lanes);
  return bits;
}
#endif

// The lane with the smallest key; among equal keys, the one with the smallest rank.
__device__ __forceinline__ int least_lane(uint64_t key, int32_t rank) {
  const uint32_t high = static_cast<uint32_t>(key >> 32);
  const bool high_ties = high == least_in_warp(high);
  unsigned lanes = __ballot_sync(kAll, high_ties);
  if ((lanes & (lanes - 1)) != 0) {
    const uint32_t low = high_ties ? static_cast<uint32_t>(key) : ~0u;
    const uint32_t least_low = least_in_warp(low);
    const bool ties = high_ties && low == least_low;
    const int32_t least_rank = least_in_warp(ties ? rank : INT32_MAX);
    lanes = __ballot_sync(kAll, ties && rank == least_rank);
  }
  return 31 - __clz(static_cast<int>(lanes));
}

__device__ __forceinline__ Nearest nearest_in_warp(const Nearest& mine) {
  const int lane = least_lane(key_of(mine.distance), mine.rank);
  const Nearest best{__shfl_sync(kAll, mine.distance, lane), __shfl_sync(kAll, mine.rank, lane),
                     __shfl_sync(kAll, mine.column, lane)};
  __syncwarp();
  return best;
}

// The same if the rank is also the column: reductions alone give every lane the result. Unlike
// above, this is not slower for equal distances, which untrained predictions have.
__device__ __forceinline__ Nearest nearest_place_in_warp(double distance, int32_t place) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const uint64_t key = key_of(distance);
  const uint32_t high = static_cast<uint32_t>(key >> 32);
  const uint32_t least_high = least_in_warp(high);
  const uint32_t low = high == least_high ? static_cast<uint32_t>(key) : ~0u;
  const uint32_t least_low = least_in_warp(low);
  const bool nearest = (high == least_high) & (low == least_low);
  const int32_t least_place = least_in_warp(nearest ? place : INT32_MAX);
  return {value_of(static_cast<uint64_t>(least_high) << 32 | least_low), least_place, least_place};
#else
  return nearest_in_warp({distance, place, place});
#endif
}

__device__ __forceinline__ TwoLeast two_least_in_warp(const TwoLeast& mine) {
  const int lane = least_lane(key_of(mine.least), mine.column);
  const bool has_least = threadIdx.x % 32 == static_cast<unsigned>(lane);
  const double next = has_least ? mine.second : mine.least;
  const int next_lane = least_lane(key_of(next), 0);
  const TwoLeast best{__shfl_sync(kAll, mine.least, lane), __shfl_sync(kAll, next, next_lane),
                      __shfl_sync(kAll, mine.column, lane)};
  __syncwarp();
  return best;
}

__device__ __forceinline__ void claim_slot(int32_t* slot, int32_t row) {
  atomicMin(reinterpret_cast<unsigned*>(slot), static_cast<unsigned>(row));
}

struct Warp {
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ int lanes() const { return 32; }
  __device__ void sync() const { __syncwarp(); }
  __device__ Nearest nearest(const Nearest& mine) const { return nearest_in_warp(mine); }
  __device__ Nearest nearest_place(double distance, int32_t place) const {
    return nearest_place_in_warp(distance, place);
  }
  __device__ int32_t least(int32_t mine) const { return least_in_warp(mine); }
  __device__ TwoLeast two_least(const TwoLeast& mine) const { return two_least_in_warp(mine); }
  __device__ static void claim(int32_t* slot, int32_t row) { claim_slot(slot, row); }
  __device__ void write_union(int32_t* word, int32_t bits) const {
    const unsigned all = union_in_warp(static_cast<unsigned>(bits));
    if (lane() == 0) *word = static_cast<int32_t>(all);
  }
};

// Warps exchange their results through two alternating sets of slots, so that one barrier per
// reduction is enough.
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
    return nearest_of(nearest_in_warp(mine));
  }

  __device__ Nearest nearest_place(double distance, int32_t place) const {
    return nearest_of(nearest_place_in_warp(distance, place));
  }

  __device__ int32_t least(int32_t mine) const {
    const int32_t of_warp = least_in_warp(mine);
    return nearest_of({0.0, of_warp, of_warp}).rank;
  }

  __device__ Nearest nearest_of(const Nearest& of_warp) const {
    turn ^= 1;
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
    const unsigned of_warp = union_in_warp(static_cast<unsigned>(bits));
    if (leads()) slots->bits[warp()] = of_warp;
    __syncthreads();
    if (lane() != 0) return;
    unsigned all = 0;
    for (int w = 0; w < kWarps; ++w) all |= slots->bits[w];
    *word = static_cast<int32_t>(all);
  }
};

// All warps of a block, which load the problem that the first warp then solves.
struct Loaders {
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ int lanes() const { return static_cast<int>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }
};

extern __shared__ __align__(16) double shared_memory[];

// The location of the working memory of problems.
struct Workspace {
  char* arrays;  // null: in shared memory, which `solve_by_warp` always uses
  int64_t array_bytes;
  char* costs;  // in global memory, which the L2 cache holds
  int64_t cost_bytes;
};

constexpr int kLoadingWarps = 4;

template <class T, class Group, bool kStrict, bool kOnChip>
__global__ void __launch_bounds__(32 * kLoadingWarps, 1)
    solve_by_warp(const Batch batch, const Workspace space) {
  __shared__ int status;
  char* memory = reinterpret_cast<char*>(shared_memory);
  T* dense = reinterpret_cast<T*>(memory + space.array_bytes);
  const int64_t problem = blockIdx.x;
  if constexpr (!kOnChip) dense = reinterpret_cast<T*>(space.costs + problem * space.cost_bytes);
  if (threadIdx.x == 0) status = 0;
  const int32_t bits =
      mfk::assignment::load_problem<T, kVectorOf<Group>>(Loaders{}, batch, problem, dense);
  if (bits != 0) atomicOr(&status, bits);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const Group group{Warp{}};
  mfk::assignment::solve_loaded<kStrict, T>(group, batch, problem, memory, dense, status);
}

constexpr int kWarps = 8;

template <class T, class Group, bool kStrict>
__global__ void __launch_bounds__(32 * kWarps, 1)
    solve_by_block(const Batch batch, const Workspace space) {
  __shared__ typename Block<kWarps>::Slots slots;
  const int64_t problem = blockIdx.x;
  char* memory = space.arrays ? space.arrays + problem * space.array_bytes
                              : reinterpret_cast<char*>(shared_memory);
  T* dense = reinterpret_cast<T*>(space.costs + problem * space.cost_bytes);
  const Group group{Block<kWarps>(&slots)};
  const int32_t bits =
      mfk::assignment::load_problem<T, kVectorOf<Group>>(group, batch, problem, dense);
  mfk::assignment::solve_loaded<kStrict, T>(group, batch, problem, memory, dense, bits);
}

// With more columns than this, eight warps solve a problem.
constexpr int64_t kManyColumns = 512;
// Shared memory that a problem may use whatever the number of problems.
constexpr int64_t kModestBytes = 48 * 1024;
// Static shared memory, and what the system reserves for each block.
constexpr int64_t kReservedBytes = 2 * 1024;

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, int64_t problems, int threads, int64_t bytes, int64_t block_limit,
            cudaStream_t stream, const Arguments&... arguments) {
  if (bytes > kModestBytes) {
    // Always the same limit, because another thread may set it between this call and the launch.
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(block_limit)));
  }
  kernel<<<static_cast<unsigned>(problems), threads, static_cast<size_t>(bytes), stream>>>(
      arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Whether costs and arrays are kept in shared memory: if all problems then still run concurrently,
// or if they take little of it.
bool fits_on_chip(int64_t problems, int64_t bytes, int64_t block_limit, int device) {
  const int64_t wave = mfk::divide_up(problems, attribute(cudaDevAttrMultiProcessorCount, device));
  const int64_t per_processor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  return bytes <= block_limit &&
         (bytes <= kModestBytes || wave * (bytes + kReservedBytes) <= per_processor);
}

// The memory that the largest problem of a batch takes, and the limit of shared memory per block.
struct Footprint {
  int64_t columns, arrays, costs, block_limit;

  // `read`: the number of columns of a row that the group reads.
  template <class T, int kVector = 1>
  static Footprint of(const Batch& batch, bool strict, int device, int64_t read = 0) {
    const int64_t rows = batch.rows < batch.columns ? batch.rows : batch.columns;
    const int64_t columns = batch.rows < batch.columns ? batch.columns : batch.rows;
    const int64_t elements = mfk::assignment::dense_elements<kVector>(rows, columns, read);
    return {columns, mfk::assignment::array_bytes(rows, columns, strict),
            mfk::round_up(elements * static_cast<int64_t>(sizeof(T)), 16),
            attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - kReservedBytes};
  }
};

// Launches with the costs in global memory, and the other arrays in shared memory if they fit.
template <class Kernel>
void launch_off_chip(Kernel kernel, int threads, const Tensor& cost, const Batch& batch,
                     const Footprint& size, cudaStream_t stream) {
  const bool arrays_fit = size.arrays <= size.block_limit;
  const int64_t bytes = batch.batch * (size.costs + (arrays_fit ? 0 : size.arrays));
  const Tensor memory = torch::stable::new_empty(cost, {bytes}, ScalarType::Byte);
  char* costs = static_cast<char*>(memory.mutable_data_ptr());
  char* arrays = arrays_fit ? nullptr : costs + batch.batch * size.costs;
  launch(kernel, batch.batch, threads, arrays_fit ? size.arrays : 0, size.block_limit, stream,
         batch, Workspace{arrays, size.arrays, costs, size.costs});
}

template <class T, class Group, bool kStrict>
void launch_warps(const Tensor& cost, const Batch& batch, const Footprint& size, int device,
                  cudaStream_t stream) {
  constexpr int kThreads = 32 * kLoadingWarps;
  const int64_t bytes = size.arrays + size.costs;
  if (fits_on_chip(batch.batch, bytes, size.block_limit, device)) {
    launch(solve_by_warp<T, Group, kStrict, true>, batch.batch, kThreads, bytes, size.block_limit,
           stream, batch, Workspace{nullptr, size.arrays, nullptr, size.costs});
  } else {
    launch_off_chip(solve_by_warp<T, Group, kStrict, false>, kThreads, cost, batch, size, stream);
  }
}

template <class T, class Group, bool kStrict>
void launch_blocks(const Tensor& cost, const Batch& batch, const Footprint& size,
                   cudaStream_t stream) {
  launch_off_chip(solve_by_block<T, Group, kStrict>, 32 * kWarps, cost, batch, size, stream);
}

template <class T, bool kStrict>
void solve_in_memory(const Tensor& cost, const Batch& batch, int device, cudaStream_t stream) {
  const Footprint size = Footprint::of<T>(batch, kStrict, device);
  if (size.columns <= kManyColumns) {
    launch_warps<T, Warp, kStrict>(cost, batch, size, device, stream);
  } else {
    launch_blocks<T, Block<kWarps>, kStrict>(cost, batch, size, stream);
  }
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Uses groups that keep their columns in registers, with the fewest columns per lane that suffice.
void solve_in_registers(const Tensor& cost, const Batch& batch, int device, cudaStream_t stream) {
  const int64_t columns = batch.rows < batch.columns ? batch.columns : batch.rows;
  const auto warps = [&](auto per_lane, auto vector) {
    constexpr int kPerLane = decltype(per_lane)::value;
    using Group = InRegisters<Warp, kPerLane, decltype(vector)::value>;
    const Footprint size =
        Footprint::of<float, kVectorOf<Group>>(batch, false, device, 32 * kPerLane);
    launch_warps<float, Group, false>(cost, batch, size, device, stream);
  };
  const auto blocks = [&](auto per_lane) {
    constexpr int kPerLane = decltype(per_lane)::value;
    using Group = InRegisters<Block<kWarps>, kPerLane>;
    const Footprint size = Footprint::of<float>(batch, false, device, 32 * kWarps * kPerLane);
    launch_blocks<float, Group, false>(cost, batch, size, stream);
  };
  const int64_t per_lane = mfk::divide_up(columns, 32);
  constexpr Constant<1> one;
  if (per_lane <= 2) return warps(Constant<2>{}, one);
  if (per_lane <= 4) return warps(Constant<4>{}, Constant<4>{});
  // For larger problems, whose costs are in global memory, vector loads are slower: by 45 % for 208
  // problems of 300x100.
  if (per_lane <= 10) return warps(Constant<10>{}, one);
  if (per_lane <= 16) return warps(Constant<16>{}, one);
  if (per_lane <= 4 * kWarps) return blocks(Constant<4>{});
  if (per_lane <= 16 * kWarps) return blocks(Constant<16>{});
  const Footprint size = Footprint::of<float>(batch, false, device);
  launch_blocks<float, Block<kWarps>, false>(cost, batch, size, stream);
}

// The values are clamped on the device, because reading them here would synchronise.
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
    if (is_double && strict) solve_in_memory<double, true>(cost, batch, device, stream);
    if (is_double && !strict) solve_in_memory<double, false>(cost, batch, device, stream);
    if (!is_double && strict) solve_in_memory<float, true>(cost, batch, device, stream);
    if (!is_double && !strict) solve_in_registers(cost, batch, device, stream);
  }
  return {tensors.assignment, tensors.status};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CUDA, m) { m.impl("assignment", TORCH_BOX(&assignment)); }

}  // namespace
