// Solves one assignment problem on one thread with vector instructions. The build compiles this
// file once for each instruction set, with MFK_KERNEL as the name of its only public object.
#include "cpu/assignment/kernel.h"

#include <type_traits>

#include "core/assignment.h"
#include "cpu/common/memory.h"
#include "cpu/common/vector.h"

namespace mfk::cpu {
namespace {

// Templates with this type as an argument have internal linkage, so that instruction sets share no
// code.
struct VectorLane {
  static constexpr int lane() { return 0; }
  static constexpr int lanes() { return 1; }
  static void sync() {}
  static assignment::Nearest nearest(const assignment::Nearest& best) { return best; }
  static void claim(int32_t* slot, int32_t row) {
    if (*slot == assignment::kNone) *slot = row;
  }
};

constexpr int32_t padded(int32_t columns) {
  return static_cast<int32_t>(round_up(columns, kRowPadding));
}

}  // namespace
}  // namespace mfk::cpu

namespace mfk::assignment {

template <>
struct Scan<cpu::VectorLane> {
  using Group = cpu::VectorLane;

  // A minimum over a row is found in two, of its even and of its odd vectors: a single one would wait
  // for itself at each vector. Rows are padded to whole pairs of vectors.
  static constexpr int kChains = 2;
  static_assert(cpu::kRowPadding % (kChains * cpu::VectorOf<double>::kWidth) == 0);

  template <bool kFirst, bool kStrict, class P>
  static Nearest relax(const Group&, const P& p, int32_t row, double base) {
    using namespace cpu;
    constexpr int kWidth = VectorOf<double>::kWidth;
    const auto* costs = p.costs.data + row * p.costs.row_stride;
    const double* duals = p.column_dual;
    double* distances = p.distance;
    int64_t* path = p.path;
    const int32_t columns = p.columns;
    const double row_dual = p.row_dual[row];
    const double offset = base - row_dual;
    Doubles least[kChains];
    Longs where[kChains]{};
    for (Doubles& value : least) value = Doubles{} + infinity();
    Longs indices = lane_indices<double>();
    const Longs from = Longs{} + row;
    for (int32_t first = 0; first < columns; first += kChains * kWidth) {
      for (int k = 0; k < kChains; ++k, indices += kWidth) {
        const int32_t j = first + k * kWidth;
        const Doubles cost = load_doubles(costs + j);
        const Doubles dual = load<Doubles>(duals + j);
        const Doubles reduced =
            kStrict ? ((base + cost) - row_dual) - dual : (cost - dual) + offset;
        Doubles distance = reduced;
        if constexpr (kFirst) {
          store(path + j, from);
        } else {
          const Doubles before = load<Doubles>(distances + j);
          const Longs nearer = reduced < before;
          distance = nearer ? reduced : before;
          store(path + j, nearer ? from : load<Longs>(path + j));
        }
        store(distances + j, distance);
        const Longs better = distance < least[k];
        least[k] = better ? distance : least[k];
        where[k] = better ? indices : where[k];
      }
    }
    // Of equal distances, the lower index.
    const Longs other = (least[1] < least[0]) | ((least[1] == least[0]) & (where[1] < where[0]));
    const Least<double> found =
        least_of<double>(other ? least[1] : least[0], other ? where[1] : where[0]);
    const Nearest best{found.value, found.index, found.index};
    return kStrict ? choose_as_scipy(p, best) : best;
  }

  template <class P>
  static Nearest free_as_near(const Group&, const P& p, const Nearest& best) {
    using namespace cpu;
    constexpr int kWidth = VectorOf<double>::kWidth;
    using Rows = typename VectorOfBytes<int32_t, 4 * kWidth>::type;
    const Longs none = Longs{} + INT32_MAX;
    Longs found = none;
    Longs indices = lane_indices<double>();
    for (int32_t j = 0; j < p.columns; j += kWidth, indices += kWidth) {
      const Longs rows = __builtin_convertvector(load<Rows>(p.row_of_column + j), Longs);
      const Longs fits = (load<Doubles>(p.distance + j) == best.distance) & (rows == kNone);
      found = minimum(found, fits ? indices : none);
    }
    const int32_t column = static_cast<int32_t>(least_entry<int64_t>(found));
    return free_or(column, best);
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
    using T = typename P::Cost;
    using Vector = typename VectorOf<T>::type;
    for (int32_t i = 0; i < p.rows; ++i) {
      const T* costs = p.costs.data + i * p.costs.row_stride;
      Vector least = Vector{} + static_cast<T>(infinity());
      typename VectorOf<T>::index where{};
      auto indices = lane_indices<T>();
      for (int32_t j = 0; j < p.columns; j += VectorOf<T>::kWidth) {
        const Vector cost = load<Vector>(costs + j);
        const auto better = cost < least;
        least = better ? cost : least;
        where = better ? indices : where;
        indices += VectorOf<T>::kWidth;
      }
      const Least<T> found = least_of<T>(least, where);
      const bool edge = is_finite(found.value);
      p.row_dual[i] = edge ? found.value : 0.0;
      p.column_of_row[i] = edge ? found.index : kNone;
      if (edge) Group::claim(&p.row_of_column[found.index], i);
    }
  }

  template <class P>
  static TwoLeast two_least(const Group&, const P& p, int32_t row) {
    using namespace cpu;
    constexpr int kWidth = VectorOf<double>::kWidth;
    const auto* costs = p.costs.data + row * p.costs.row_stride;
    const double* duals = p.column_dual;
    Doubles least[kChains], second[kChains];
    Longs where[kChains]{};
    for (int k = 0; k < kChains; ++k) least[k] = second[k] = Doubles{} + infinity();
    Longs indices = lane_indices<double>();
    for (int32_t first = 0; first < p.columns; first += kChains * kWidth) {
      for (int k = 0; k < kChains; ++k, indices += kWidth) {
        const int32_t j = first + k * kWidth;
        const Doubles reduced = load_doubles(costs + j) - load<Doubles>(duals + j);
        second[k] = minimum(second[k], maximum(least[k], reduced));
        const Longs better = reduced < least[k];
        least[k] = better ? reduced : least[k];
        where[k] = better ? indices : where[k];
      }
    }
    return joined<MFK_VECTOR_BYTES>(least, second, where);
  }

  // The two least of all entries: two vectors are joined to one, whose halves are joined again. To
  // visit the entries one by one would take branches that processors cannot predict.
  template <int kBytes, class V, class Index>
  static MFK_INLINE TwoLeast joined(const V (&least)[2], const V (&second)[2],
                                    const Index (&where)[2]) {
    using namespace cpu;
    const Index other = least[1] < least[0];
    const V nearest = other ? least[1] : least[0];
    const V next = minimum(minimum(second[0], second[1]), maximum(least[0], least[1]));
    const Index columns = other ? where[1] : where[0];
    if constexpr (kBytes == 16) {
      return join({nearest[0], next[0], static_cast<int32_t>(columns[0])},
                  {nearest[1], next[1], static_cast<int32_t>(columns[1])});
    } else {
      typename VectorOfBytes<double, kBytes / 2>::type nearest_halves[2], next_halves[2];
      typename VectorOfBytes<int64_t, kBytes / 2>::type column_halves[2];
      __builtin_memcpy(nearest_halves, &nearest, kBytes);
      __builtin_memcpy(next_halves, &next, kBytes);
      __builtin_memcpy(column_halves, &columns, kBytes);
      return joined<kBytes / 2>(nearest_halves, next_halves, column_halves);
    }
  }

  // Row by row, so that memory is read sequentially.
  template <class P>
  static void column_minima(const Group&, const P& p) {
    using namespace cpu;
    constexpr int kWidth = VectorOf<double>::kWidth;
    double* duals = p.column_dual;
    int64_t* path = p.path;
    for (int32_t i = 0; i < p.rows; ++i) {
      const auto* costs = p.costs.data + i * p.costs.row_stride;
      const Longs from = Longs{} + i;
      for (int32_t j = 0; j < p.columns; j += kWidth) {
        const Doubles cost = load_doubles(costs + j);
        const Doubles before = i == 0 ? Doubles{} + infinity() : load<Doubles>(duals + j);
        const Longs better = cost < before;
        store(duals + j, better ? cost : before);
        store(path + j, better ? from : i == 0 ? Longs{} + kNone : load<Longs>(path + j));
      }
    }
    // Columns without an edge, and the padding.
    for (int32_t j = 0; j < padded(p.columns); ++j) {
      if (path[j] == kNone || j >= p.columns) duals[j] = 0.0;
    }
  }
};

}  // namespace mfk::assignment

namespace mfk::cpu {
namespace {

using assignment::DenseCosts;
using assignment::Problem;

template <class T>
Problem<DenseCosts<T>, int64_t> take_arrays(Arena& arena, int32_t rows, int32_t columns) {
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
  return p;
}

// Costs with an exponent of at least kLarge are not finite, or sums of them may overflow in fp64.
template <class T>
struct Bits;
template <>
struct Bits<float> {
  using type = uint32_t;
  static constexpr type kExponent = 0x7f800000u;
  static constexpr type kLarge = kExponent;
};
template <>
struct Bits<double> {
  using type = uint64_t;
  static constexpr type kExponent = 0x7ff0000000000000u;
  static constexpr type kLarge = assignment::kLargeExponent;
};

// Copies costs entry by entry. Sets `special` if one of them is large.
template <class S, class T>
void copy_entries(const S* source, int64_t row_stride, int64_t column_stride, int32_t rows,
                  int32_t columns, T* dense, int64_t width, typename Bits<T>::type& special) {
  using B = Bits<T>;
  for (int32_t i = 0; i < rows; ++i) {
    const S* from = source + i * row_stride;
    T* to = dense + i * width;
    for (int32_t j = 0; j < columns; ++j) {
      const T cost = widen(from[j * column_stride]);
      special |= static_cast<typename B::type>((bits_of(cost) & B::kExponent) >= B::kLarge);
      to[j] = cost;
    }
  }
}

// The same for a transposed source: tiles are transposed in registers. The last tiles overlap those
// before. Needs at least one whole tile.
template <class S>
void copy_transposed(const S* source, int64_t column_stride, int32_t rows, int32_t columns,
                     float* dense, int64_t width, uint32_t& special) {
  using Words = uint32_t __attribute__((vector_size(4 * kTile)));
  const Words exponent = Words{} + Bits<float>::kExponent;
  Words found{};
  for (int32_t j = 0;; j = j + kTile <= columns - kTile ? j + kTile : columns - kTile) {
    for (int32_t i = 0;; i = i + kTile <= rows - kTile ? i + kTile : rows - kTile) {
      Tile tile[kTile];
      for (int k = 0; k < kTile; ++k) {
        tile[k] = load_tile_row(source + (j + k) * column_stride + i);
        found |= Words((Words(tile[k]) & exponent) == exponent);
      }
      transpose(tile);
      for (int k = 0; k < kTile; ++k) store(dense + (i + k) * width + j, tile[k]);
      if (i + kTile == rows) break;
    }
    if (j + kTile == columns) break;
  }
  for (int k = 0; k < kTile; ++k) special |= found[k];
}

// The factor by which all costs are multiplied: see `kFactorOfLarge`.
template <class T>
T factor_for(const T* dense, int64_t width, int32_t rows, int32_t columns) {
  for (int32_t i = 0; i < rows; ++i) {
    for (int32_t j = 0; j < columns; ++j) {
      if (assignment::is_large(dense[i * width + j])) {
        return static_cast<T>(assignment::kFactorOfLarge);
      }
    }
  }
  return 1;
}

// Copies costs into dense rows. `negate` them for maximisation; with `scale`, scale them if some
// are large. Returns the status bits.
template <class S, class T>
int32_t load_dense(const S* source, const assignment::Shape& shape, bool negate, bool scale,
                   T* dense) {
  const int32_t rows = shape.rows, columns = shape.columns;
  const int64_t row_stride = shape.row_stride, column_stride = shape.column_stride;
  const int64_t width = padded(columns);
  typename Bits<T>::type special = 0;
  bool copied = false;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (row_stride == 1 && rows >= kTile && columns >= kTile) {
      copy_transposed(source, column_stride, rows, columns, dense, width, special);
      copied = true;
    }
  }
  if (!copied) {
    if (column_stride == 1) {
      copy_entries(source, row_stride, 1, rows, columns, dense, width, special);
    } else {
      copy_entries(source, row_stride, column_stride, rows, columns, dense, width, special);
    }
  }
  const T infinite = static_cast<T>(assignment::infinity());
  const T factor = special && scale ? factor_for(dense, width, rows, columns) : T{1};
  int32_t status = 0;
  for (int32_t i = 0; i < rows; ++i) {
    T* row = dense + i * width;
    if (negate) {
      for (int32_t j = 0; j < columns; ++j) row[j] = -row[j];
    }
    if (special) {
      for (int32_t j = 0; j < columns; ++j) row[j] = assignment::admit(factor * row[j], status);
    }
    for (int64_t j = columns; j < width; ++j) row[j] = infinite;
  }
  return status;
}

// Whether no cost is large, for contiguous rows.
template <class T>
bool none_large(const T* costs, int64_t row_stride, int32_t rows, int32_t columns) {
  using B = Bits<T>;
  for (int32_t i = 0; i < rows; ++i) {
    typename B::type special = 0;
    for (int32_t j = 0; j < columns; ++j) {
      const auto exponent = bits_of(costs[i * row_stride + j]) & B::kExponent;
      special |= static_cast<typename B::type>(exponent >= B::kLarge);
    }
    if (special) return false;
  }
  return true;
}

// From this many bytes on, costs with a suitable layout are used in place. Below, a copy in the
// cache is faster than rows scattered over memory.
constexpr int64_t kInPlaceBytes = 1 << 18;

template <class T>
bool usable_in_place(const assignment::Batch& batch, const T* costs,
                     const assignment::Shape& shape) {
  const int64_t bytes = static_cast<int64_t>(sizeof(T)) * shape.rows * shape.columns;
  return shape.column_stride == 1 && !batch.maximize && shape.columns % kRowPadding == 0 &&
         bytes >= kInPlaceBytes && none_large(costs, shape.row_stride, shape.rows, shape.columns);
}

template <class S, bool kStrict>
void solve_problem(const assignment::Batch& batch, int64_t index, void* workspace) {
  using T = typename Widened<S>::type;
  int64_t* result = batch.assignment + index * batch.rows;
  for (int64_t i = 0; i < batch.rows; ++i) result[i] = assignment::kNone;
  batch.status[index] = 0;

  const assignment::Shape shape = assignment::shape_of(batch, index);
  const int32_t rows = shape.rows, columns = shape.columns;
  if (rows == 0) return;
  Arena arena(workspace);
  auto p = take_arrays<T>(arena, rows, columns);
  for (int32_t j = columns; j < padded(columns); ++j) p.column_dual[j] = 0.0;
  const S* source = static_cast<const S*>(batch.cost) + index * batch.batch_stride;
  int32_t status = 0;
  const VectorLane lane;
  bool complete = false;
  if constexpr (std::is_same_v<S, T>) {
    if (usable_in_place(batch, source, shape)) {
      p.costs = {source, shape.row_stride};
      complete = assignment::solve<kStrict>(lane, p);
    }
  }
  if (!complete) {
    const int32_t width = padded(columns);
    T* dense = arena.take<T>(static_cast<int64_t>(rows) * width);
    // Strict solutions are not scaled, because SciPy does not scale.
    status = load_dense(source, shape, batch.maximize, !kStrict, dense);
    p.costs = {dense, width};
    complete = assignment::solve<kStrict>(lane, p);
    if (!complete) {
      status |= assignment::kInfeasible;
      if (batch.substitute) {
        assignment::substitute_missing(lane, p, dense);
        complete = assignment::solve<kStrict>(lane, p);
      }
    }
  }
  batch.status[index] = status;
  if (!complete) return;
  if (shape.transposed) {
    for (int32_t j = 0; j < columns; ++j) result[j] = p.row_of_column[j];
  } else {
    for (int32_t i = 0; i < rows; ++i) result[i] = p.column_of_row[i];
  }
}

template <bool kStrict>
AssignmentSolver solver_of(Element element) {
  switch (element) {
    case Element::kHalf:
      return solve_problem<Half, kStrict>;
    case Element::kBFloat16:
      return solve_problem<BFloat16, kStrict>;
    case Element::kFloat:
      return solve_problem<float, kStrict>;
    case Element::kDouble:
      break;
  }
  return solve_problem<double, kStrict>;
}

AssignmentSolver solver(const assignment::Batch& batch) {
  return batch.strict ? solver_of<true>(batch.element) : solver_of<false>(batch.element);
}

int64_t workspace_bytes(const assignment::Batch& batch) {
  if (batch.rows == 0 || batch.columns == 0) return 0;
  const bool transposed = batch.rows > batch.columns;
  const int32_t least = static_cast<int32_t>(transposed ? batch.columns : batch.rows);
  const int32_t most = static_cast<int32_t>(transposed ? batch.rows : batch.columns);
  const int64_t size = batch.element == Element::kDouble ? sizeof(double) : sizeof(float);
  Arena arena(nullptr);
  take_arrays<double>(arena, least, most);
  arena.take<char>(size * least * padded(most));
  return arena.used();
}

}  // namespace

extern const AssignmentKernel MFK_KERNEL = {workspace_bytes, solver};

}  // namespace mfk::cpu
