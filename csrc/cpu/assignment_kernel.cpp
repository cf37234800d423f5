// One assignment problem on one thread with vector registers. The build compiles this file once for
// each instruction set, with MFK_KERNEL as the name of its one public object.
#include "cpu/assignment_kernel.h"

#include <cfloat>

#include "core/assignment.h"

#if defined(__AVX512F__)
#define MFK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define MFK_VECTOR_BYTES 32
#else
#define MFK_VECTOR_BYTES 16
#endif

namespace mfk::cpu {
namespace {

// Everything templated on this type has internal linkage, so no code leaks between instruction
// sets.
struct VectorLane {
  static constexpr int lane() { return 0; }
  static constexpr int lanes() { return 1; }
  static void sync() {}
  static assignment::Nearest nearest(const assignment::Nearest& best) { return best; }
  static void claim(int32_t* slot, int32_t row) {
    if (*slot == assignment::kNone) *slot = row;
  }
};

// Rows of costs are padded with +inf to a multiple of this, so that no loop has a tail.
constexpr int32_t kPadding = 16;

constexpr int32_t padded(int32_t columns) { return (columns + kPadding - 1) / kPadding * kPadding; }

constexpr int kWidth = MFK_VECTOR_BYTES / 8;
using Doubles = double __attribute__((vector_size(MFK_VECTOR_BYTES)));
using Longs = int64_t __attribute__((vector_size(MFK_VECTOR_BYTES)));
using HalfFloats = float __attribute__((vector_size(MFK_VECTOR_BYTES / 2)));

template <class V, class T>
MFK_INLINE V load(const T* data) {
  V value;
  __builtin_memcpy(&value, data, sizeof(V));
  return value;
}

template <class V, class T>
MFK_INLINE void store(T* data, const V& value) {
  __builtin_memcpy(data, &value, sizeof(V));
}

MFK_INLINE Doubles load_costs(const double* data) { return load<Doubles>(data); }
MFK_INLINE Doubles load_costs(const float* data) {
  return __builtin_convertvector(load<HalfFloats>(data), Doubles);
}

MFK_INLINE Longs first_columns() {
  Longs columns;
  for (int k = 0; k < kWidth; ++k) columns[k] = k;
  return columns;
}

}  // namespace
}  // namespace mfk::cpu

namespace mfk::assignment {

template <>
struct Scan<cpu::VectorLane> {
  using Group = cpu::VectorLane;

  template <bool kFirst, bool kStrict, class P>
  static Nearest relax(const Group&, const P& p, int32_t row, double base) {
    using namespace cpu;
    const auto* costs = p.costs.data + row * p.costs.row_stride;
    const double row_dual = p.row_dual[row];
    const double offset = base - row_dual;
    Doubles least = Doubles{} + infinity();
    Longs where = Longs{} + kNone;
    Longs columns = first_columns();
    const Longs from = Longs{} + row;
    for (int32_t j = 0; j < p.columns; j += kWidth, columns += kWidth) {
      const Doubles cost = load_costs(costs + j);
      const Doubles dual = load<Doubles>(p.column_dual + j);
      const Doubles reduced = kStrict ? ((base + cost) - row_dual) - dual : (cost - dual) + offset;
      Doubles distance = reduced;
      if constexpr (kFirst) {
        store(p.path + j, from);
      } else {
        const Doubles before = load<Doubles>(p.distance + j);
        const Longs nearer = reduced < before;
        distance = nearer ? reduced : before;
        store(p.path + j, nearer ? from : load<Longs>(p.path + j));
      }
      store(p.distance + j, distance);
      const Longs better = distance < least;
      least = better ? distance : least;
      where = better ? columns : where;
    }
    Nearest best{infinity(), INT32_MAX, kNone};
    for (int k = 0; k < kWidth; ++k) {
      const int32_t column = static_cast<int32_t>(where[k]);
      const Nearest here{least[k], column, column};
      if (here < best) best = here;
    }
    if constexpr (kStrict) best = choose_as_scipy(p, best);
    return best;
  }

  template <class P>
  static Nearest choose_as_scipy(const P& p, Nearest best) {
    best.rank = INT32_MAX;
    for (int32_t j = 0; j < p.columns; ++j) {
      if (p.distance[j] != best.distance) continue;
      const int32_t position = p.position[j];
      const int32_t rank = p.row_of_column[j] == kNone ? -1 - position : position;
      if (rank < best.rank) best = {best.distance, rank, j};
    }
    return best;
  }

  template <class P>
  static void claim_minima(const Group&, const P& p) {
    using namespace cpu;
    for (int32_t i = 0; i < p.rows; ++i) {
      const auto* costs = p.costs.data + i * p.costs.row_stride;
      Doubles least = Doubles{} + infinity();
      Longs where = Longs{} + kNone;
      Longs columns = first_columns();
      for (int32_t j = 0; j < p.columns; j += kWidth, columns += kWidth) {
        const Doubles cost = load_costs(costs + j);
        const Longs better = cost < least;
        least = better ? cost : least;
        where = better ? columns : where;
      }
      Nearest best{infinity(), INT32_MAX, kNone};
      for (int k = 0; k < kWidth; ++k) {
        const int32_t column = static_cast<int32_t>(where[k]);
        const Nearest here{least[k], column, column};
        if (here < best) best = here;
      }
      p.row_dual[i] = best.column == kNone ? 0.0 : best.distance;
      p.column_of_row[i] = best.column;
      if (best.column != kNone) Group::claim(&p.row_of_column[best.column], i);
    }
  }
};

}  // namespace mfk::assignment

namespace mfk::cpu {
namespace {

using assignment::DenseCosts;
using assignment::Problem;

// Hands out arrays from one block, each aligned for vectors.
class Arena {
 public:
  explicit Arena(void* block) : next_(static_cast<char*>(block)) {}

  template <class T>
  T* take(int64_t count) {
    T* array = reinterpret_cast<T*>(next_);
    next_ += bytes<T>(count);
    return array;
  }

  template <class T>
  static constexpr int64_t bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  char* next_;
};

constexpr int64_t arrays_bytes(int32_t rows, int32_t columns) {
  const int32_t width = padded(columns);
  return 2 * Arena::bytes<double>(width) + Arena::bytes<int64_t>(width) +
         3 * Arena::bytes<int32_t>(width) + 3 * Arena::bytes<double>(rows) +
         2 * Arena::bytes<int32_t>(rows);
}

template <class T>
Problem<DenseCosts<T>, int64_t> make_problem(Arena& arena, int32_t rows, int32_t columns) {
  const int32_t width = padded(columns);
  Problem<DenseCosts<T>, int64_t> p;
  p.rows = rows;
  p.columns = columns;
  p.column_dual = arena.take<double>(width);
  p.distance = arena.take<double>(width);
  p.path = arena.take<int64_t>(width);
  p.row_of_column = arena.take<int32_t>(width);
  p.remaining = arena.take<int32_t>(width);
  p.position = arena.take<int32_t>(width);
  p.row_dual = arena.take<double>(rows);
  p.tree_distance = arena.take<double>(rows);
  p.tree_dual = arena.take<double>(rows);
  p.column_of_row = arena.take<int32_t>(rows);
  p.tree_column = arena.take<int32_t>(rows);
  for (int32_t j = columns; j < width; ++j) p.column_dual[j] = 0.0;
  return p;
}

// Copy costs into dense rows, `maximize` as a change of sign. Returns the status bits.
template <class S, class T>
int32_t load_dense(const S* source, int64_t row_stride, int64_t column_stride, int32_t rows,
                   int32_t columns, bool negate, T* dense) {
  constexpr int32_t kTile = 16;
  const int32_t width = padded(columns);
  bool finite = true;
  for (int32_t j0 = 0; j0 < columns; j0 += kTile) {
    const int32_t j1 = columns - j0 < kTile ? columns : j0 + kTile;
    for (int32_t i = 0; i < rows; ++i) {
      const S* from = source + i * row_stride;
      T* to = dense + static_cast<int64_t>(i) * width;
      for (int32_t j = j0; j < j1; ++j) {
        const T cost = widen(from[j * column_stride]);
        finite &= is_finite(cost);
        to[j] = negate ? -cost : cost;
      }
    }
  }
  const T infinite = static_cast<T>(assignment::infinity());
  for (int32_t i = 0; i < rows; ++i) {
    for (int32_t j = columns; j < width; ++j) dense[static_cast<int64_t>(i) * width + j] = infinite;
  }
  int32_t status = 0;
  if (!finite) {
    for (int32_t i = 0; i < rows; ++i) {
      T* row = dense + static_cast<int64_t>(i) * width;
      for (int32_t j = 0; j < columns; ++j) row[j] = assignment::admit(row[j], status);
    }
  }
  return status;
}

template <class T>
void substitute_missing(T* dense, int32_t rows, int32_t columns) {
  const int32_t width = padded(columns);
  double least = assignment::infinity();
  double greatest = -assignment::infinity();
  for (int32_t i = 0; i < rows; ++i) {
    for (int32_t j = 0; j < columns; ++j) {
      const double cost = dense[static_cast<int64_t>(i) * width + j];
      if (!is_finite(cost)) continue;
      least = cost < least ? cost : least;
      greatest = cost > greatest ? cost : greatest;
    }
  }
  if (greatest < least) least = greatest = 0.0;
  const double limit = sizeof(T) == sizeof(float) ? FLT_MAX : DBL_MAX;
  const T cost = static_cast<T>(assignment::substitute(least, greatest, rows, limit));
  for (int32_t i = 0; i < rows; ++i) {
    T* row = dense + static_cast<int64_t>(i) * width;
    for (int32_t j = 0; j < columns; ++j) row[j] = is_finite(row[j]) ? row[j] : cost;
  }
}

template <class P>
bool solve(const AssignmentBatch& batch, const P& p) {
  const VectorLane lane;
  return batch.strict ? assignment::solve<true>(lane, p) : assignment::solve<false>(lane, p);
}

template <class S>
void solve_problem(const AssignmentBatch& batch, int64_t index, void* workspace) {
  using T = typename Widened<S>::type;
  int64_t* result = batch.assignment + index * batch.rows;
  for (int64_t i = 0; i < batch.rows; ++i) result[i] = assignment::kNone;
  batch.status[index] = 0;

  const int32_t row_count =
      static_cast<int32_t>(batch.row_counts ? batch.row_counts[index] : batch.rows);
  const int32_t column_count =
      static_cast<int32_t>(batch.column_counts ? batch.column_counts[index] : batch.columns);
  if (row_count == 0 || column_count == 0) return;
  const bool transposed = row_count > column_count;
  const int32_t rows = transposed ? column_count : row_count;
  const int32_t columns = transposed ? row_count : column_count;
  const int64_t row_stride = transposed ? batch.column_stride : batch.row_stride;
  const int64_t column_stride = transposed ? batch.row_stride : batch.column_stride;

  Arena arena(workspace);
  auto p = make_problem<T>(arena, rows, columns);
  const int32_t width = padded(columns);
  T* dense = arena.take<T>(static_cast<int64_t>(rows) * width);
  const S* source = static_cast<const S*>(batch.cost) + index * batch.batch_stride;
  int32_t status =
      load_dense(source, row_stride, column_stride, rows, columns, batch.maximize, dense);
  p.costs = {dense, width};

  bool complete = solve(batch, p);
  if (!complete) {
    status |= assignment::kInfeasible;
    if (batch.substitute) {
      substitute_missing(dense, rows, columns);
      complete = solve(batch, p);
    }
  }
  batch.status[index] = status;
  if (!complete) return;
  if (transposed) {
    for (int32_t j = 0; j < columns; ++j) result[j] = p.row_of_column[j];
  } else {
    for (int32_t i = 0; i < rows; ++i) result[i] = p.column_of_row[i];
  }
}

void solve_any(const AssignmentBatch& batch, int64_t index, void* workspace) {
  switch (batch.element) {
    case Element::kHalf:
      return solve_problem<Half>(batch, index, workspace);
    case Element::kBFloat16:
      return solve_problem<BFloat16>(batch, index, workspace);
    case Element::kFloat:
      return solve_problem<float>(batch, index, workspace);
    case Element::kDouble:
      return solve_problem<double>(batch, index, workspace);
  }
}

int64_t workspace_bytes(const AssignmentBatch& batch) {
  const bool transposed = batch.rows > batch.columns;
  const int32_t least = static_cast<int32_t>(transposed ? batch.columns : batch.rows);
  const int32_t most = static_cast<int32_t>(transposed ? batch.rows : batch.columns);
  const int64_t size = batch.element == Element::kDouble ? sizeof(double) : sizeof(float);
  return arrays_bytes(least, most) + Arena::bytes<char>(size * least * padded(most));
}

}  // namespace

extern const AssignmentKernel MFK_KERNEL = {workspace_bytes, solve_any};

}  // namespace mfk::cpu
