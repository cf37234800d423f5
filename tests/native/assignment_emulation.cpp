// The device code path of `assignment` on the CPU: a warp whose lanes run one after the other.
//
// Each lane is a fiber with its own stack. At a barrier the next lane runs, in an order that a caller
// chooses, so that a result that depends on the order of lanes between two barriers comes to light.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/assignment_batch.h"
#include "core/assignment_registers.h"

namespace py = pybind11;
namespace assignment = mfk::assignment;

namespace {

constexpr int kStackBytes = 64 * 1024;

class Fibers {
 public:
  Fibers(int lanes, int step) : lanes_(lanes), step_(step), contexts_(lanes), stacks_(lanes) {
    for (auto& stack : stacks_) stack.resize(kStackBytes);
  }

  int lanes() const { return lanes_; }
  int lane() const { return lane_; }

  // Runs `work` in every lane.
  void run(const std::function<void()>& work) {
    work_ = &work;
    finished_ = 0;
    for (int k = 0; k < lanes_; ++k) {
      getcontext(&contexts_[k]);
      contexts_[k].uc_stack.ss_sp = stacks_[k].data();
      contexts_[k].uc_stack.ss_size = kStackBytes;
      contexts_[k].uc_link = nullptr;
      makecontext(&contexts_[k], &Fibers::enter, 0);
    }
    current_ = this;
    lane_ = 0;
    swapcontext(&caller_, &contexts_[0]);
  }

  void sync() { move_on(); }

 private:
  static void enter() {
    Fibers* self = current_;
    (*self->work_)();
    if (++self->finished_ == self->lanes_) setcontext(&self->caller_);
    self->move_on();
  }

  // To the next lane in turn. A lane that has ended is never given a turn again: all lanes pass the
  // same barriers, so the others end in this very round.
  void move_on() {
    const int from = lane_;
    lane_ = (lane_ + step_) % lanes_;
    swapcontext(&contexts_[from], &contexts_[lane_]);
  }

  static inline Fibers* current_ = nullptr;
  int lanes_;
  int step_;
  int lane_ = 0;
  int finished_ = 0;
  const std::function<void()>* work_ = nullptr;
  ucontext_t caller_;
  std::vector<ucontext_t> contexts_;
  std::vector<std::vector<char>> stacks_;
};

struct Exchange {
  std::vector<assignment::Nearest> nearest;
  std::vector<assignment::TwoLeast> two_least;
  std::vector<int32_t> numbers;
};

// Nearest columns that were asked for since this was last read: as many as steps of searches.
int64_t steps = 0;

// What csrc/cuda/assignment.cu calls Warp.
struct EmulatedWarp {
  Fibers* fibers;
  Exchange* exchange;

  int lane() const { return fibers->lane(); }
  int lanes() const { return fibers->lanes(); }
  void sync() const { fibers->sync(); }

  assignment::Nearest nearest(const assignment::Nearest& mine) const {
    if (lane() == 0) ++steps;
    exchange->nearest[lane()] = mine;
    sync();
    assignment::Nearest best = exchange->nearest[0];
    for (const auto& other : exchange->nearest) best = other < best ? other : best;
    sync();
    return best;
  }

  assignment::Nearest nearest_place(double distance, int32_t place) const {
    return nearest({distance, place, place});
  }

  int32_t least(int32_t mine) const {
    exchange->numbers[lane()] = mine;
    sync();
    const int32_t least = *std::min_element(exchange->numbers.begin(), exchange->numbers.end());
    sync();
    return least;
  }

  assignment::TwoLeast two_least(const assignment::TwoLeast& mine) const {
    exchange->two_least[lane()] = mine;
    sync();
    assignment::TwoLeast best{assignment::infinity(), assignment::infinity(), assignment::kNone};
    for (const auto& other : exchange->two_least) {
      best.add(other.least, other.column);
      best.add(other.second, assignment::kNone);
    }
    sync();
    return best;
  }

  static void claim(int32_t* slot, int32_t row) {
    if (static_cast<uint32_t>(row) < static_cast<uint32_t>(*slot)) *slot = row;
  }

  void write_union(int32_t* word, int32_t bits) const {
    exchange->numbers[lane()] = bits;
    sync();
    if (lane() != 0) return;
    *word = 0;
    for (const int32_t other : exchange->numbers) *word |= other;
  }
};

template <bool kStrict, class T, class Group>
void solve(const Group& group, const assignment::Batch& batch, int64_t index, char* memory,
           T* dense) {
  const int32_t bits =
      assignment::load_problem<T, assignment::kVectorOf<Group>>(group, batch, index, dense);
  assignment::solve_loaded<kStrict, T>(group, batch, index, memory, dense, bits);
}

template <class T, bool kStrict>
void solve_all(const assignment::Batch& batch, int lanes, int step, bool in_registers) {
  Fibers fibers(lanes, step);
  Exchange exchange;
  exchange.nearest.resize(lanes);
  exchange.two_least.resize(lanes);
  exchange.numbers.resize(lanes);
  const int64_t least = batch.rows < batch.columns ? batch.rows : batch.columns;
  const int64_t most = batch.rows < batch.columns ? batch.columns : batch.rows;
  // Poisoned: what is not written before it is read shows.
  std::vector<double> memory(assignment::array_bytes(least, most, kStrict) / 8);
  std::vector<T> dense(std::max(assignment::dense_elements<1>(least, most, 16 * lanes),
                                assignment::dense_elements<4>(least, most, 16 * lanes)));
  const EmulatedWarp warp{&fibers, &exchange};
  for (int64_t b = 0; b < batch.batch; ++b) {
    std::fill(memory.begin(), memory.end(), -assignment::infinity() + assignment::infinity());
    std::fill(dense.begin(), dense.end(), static_cast<T>(-assignment::infinity()));
    fibers.run([&] {
      char* arrays = reinterpret_cast<char*>(memory.data());
      if constexpr (!kStrict) {
        using Few = assignment::InRegisters<EmulatedWarp, 2>;
        using Vector = assignment::InRegisters<EmulatedWarp, 4, 4>;
        using Many = assignment::InRegisters<EmulatedWarp, 16>;
        if (in_registers && most <= 2 * lanes) {
          return solve<kStrict>(Few(warp), batch, b, arrays, dense.data());
        }
        if (in_registers && most <= 4 * lanes) {
          return solve<kStrict>(Vector(warp), batch, b, arrays, dense.data());
        }
        if (in_registers && most <= 16 * lanes) {
          return solve<kStrict>(Many(warp), batch, b, arrays, dense.data());
        }
      }
      solve<kStrict>(warp, batch, b, arrays, dense.data());
    });
  }
}

using Counts = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

std::pair<py::array_t<int64_t>, py::array_t<int32_t>> batch_linear_assignment(
    const py::array& cost, const Counts& row_counts, const Counts& column_counts, bool maximize,
    bool strict, int threads) {
  const int64_t problems = cost.shape(0), rows = cost.shape(1), columns = cost.shape(2);
  const int64_t item = cost.itemsize();
  py::array_t<int64_t> result({problems, rows});
  py::array_t<int32_t> status(problems);
  const assignment::Batch batch{
      cost.data(),
      item == 2   ? mfk::Element::kHalf
      : item == 4 ? mfk::Element::kFloat
                  : mfk::Element::kDouble,
      problems,
      rows,
      columns,
      cost.strides(0) / item,
      cost.strides(1) / item,
      cost.strides(2) / item,
      row_counts.data(),
      column_counts.data(),
      maximize,
      strict,
      /*substitute=*/true,
      result.mutable_data(),
      status.mutable_data(),
  };
  // `threads` of the driver chooses the lanes and their order (upwards, downwards, in large steps),
  // and with 1 that columns stay in memory.
  const int lanes = threads == 3 ? 64 : 32;
  const int step = threads == 1 ? 1 : lanes - (threads == 2 ? 1 : 13);
  const bool in_registers = threads != 1;
  const bool wide = batch.element == mfk::Element::kDouble;
  if (wide && strict) solve_all<double, true>(batch, lanes, step, in_registers);
  if (wide && !strict) solve_all<double, false>(batch, lanes, step, in_registers);
  if (!wide && strict) solve_all<float, true>(batch, lanes, step, in_registers);
  if (!wide && !strict) solve_all<float, false>(batch, lanes, step, in_registers);
  return {std::move(result), std::move(status)};
}

}  // namespace

PYBIND11_MODULE(_emulated_warp, m) {
  m.doc() = "The device code of assignment on an emulated warp, for tests.";
  m.def("batch_linear_assignment", &batch_linear_assignment, py::arg("cost"), py::arg("row_counts"),
        py::arg("column_counts"), py::arg("maximize"), py::arg("strict"), py::arg("threads"));
  m.def("steps", [] { return std::exchange(steps, 0); });
}
