// A batch of assignment problems, and how a group of lanes loads, solves and stores one of them.
#pragma once

#include <cstdint>

#include "core/assignment.h"
#include "core/element.h"
#include "core/integers.h"

namespace mfk::assignment {

struct Batch {
  const void* cost;
  Element element;
  int64_t batch, rows, columns;
  int64_t batch_stride, row_stride, column_stride;  // in elements
  const int64_t* row_counts;                        // [batch], or null: all
  const int64_t* column_counts;
  bool maximize;
  bool strict;          // for ties, SciPy's indices
  bool substitute;      // give missing edges a finite cost if a problem is infeasible without them
  int64_t* assignment;  // [batch, rows] out: column of each row, -1 for none
  int32_t* status;      // [batch] out: Status bits
};

// One problem of a batch with the smaller side as rows.
struct Shape {
  int32_t rows;
  int32_t columns;
  int64_t row_stride;
  int64_t column_stride;
  bool transposed;
};

MFK_INLINE int32_t clamp_count(const int64_t* counts, int64_t index, int64_t limit) {
  const int64_t count = counts ? counts[index] : limit;
  return static_cast<int32_t>(count < 0 ? 0 : count > limit ? limit : count);
}

MFK_INLINE Shape shape_of(const Batch& batch, int64_t index) {
  const int32_t rows = clamp_count(batch.row_counts, index, batch.rows);
  const int32_t columns = clamp_count(batch.column_counts, index, batch.columns);
  if (rows <= columns) return {rows, columns, batch.row_stride, batch.column_stride, false};
  return {columns, rows, batch.column_stride, batch.row_stride, true};
}

// The size of the working memory of one problem: a single block, with the 8-byte arrays first.
MFK_INLINE int64_t array_bytes(int64_t rows, int64_t columns, bool strict) {
  return round_up(rows * 32 + columns * (strict ? 32 : 24), 16);
}

template <class T>
MFK_INLINE Problem<DenseCosts<T>> carve(char* memory, int32_t rows, int32_t columns, bool strict) {
  Problem<DenseCosts<T>> p;
  p.rows = rows;
  p.columns = columns;
  double* doubles = reinterpret_cast<double*>(memory);
  p.row_dual = doubles;
  p.tree_distance = p.row_dual + rows;
  p.tree_dual = p.tree_distance + rows;
  p.column_dual = p.tree_dual + rows;
  p.distance = p.column_dual + columns;
  int32_t* integers = reinterpret_cast<int32_t*>(p.distance + columns);
  p.column_of_row = integers;
  p.tree_column = p.column_of_row + rows;
  p.path = p.tree_column + rows;
  p.row_of_column = p.path + columns;
  p.remaining = strict ? p.row_of_column + columns : nullptr;
  p.position = strict ? p.remaining + columns : nullptr;
  return p;
}

// An odd row stride, in units of vectors, spreads the elements of a column over the banks of shared
// memory.
template <int kVector>
MFK_INLINE int64_t dense_stride(int64_t columns) {
  return (divide_up(columns, kVector) | 1) * kVector;
}

// The number of elements of dense rows if a group reads `read` columns of each, also of the last
// one.
template <int kVector>
MFK_INLINE int64_t dense_elements(int64_t rows, int64_t columns, int64_t read) {
  const int64_t stride = dense_stride<kVector>(columns);
  return rows * stride + (read > stride ? read - stride : 0);
}

// Copies the costs into dense rows, along the axis that is contiguous in memory, with several loads
// in flight. Returns this lane's status bits.
template <class S, class T, class Group>
MFK_HOST_DEVICE int32_t copy_costs(const Group& group, const S* source, const Shape& shape,
                                   bool negate, T* dense, int64_t stride) {
  constexpr int kInFlight = 16;
  const bool down = shape.row_stride < shape.column_stride;
  const int32_t inner = down ? shape.rows : shape.columns;
  const int32_t outer = down ? shape.columns : shape.rows;
  const int64_t from_inner = down ? shape.row_stride : shape.column_stride;
  const int64_t from_outer = down ? shape.column_stride : shape.row_stride;
  const int64_t to_inner = down ? stride : 1;
  const int64_t to_outer = down ? 1 : stride;
  const int32_t step_outer = group.lanes() / inner;
  const int32_t step_inner = group.lanes() % inner;
  int32_t status = 0;
  int32_t o = group.lane() / inner;
  int32_t i = group.lane() % inner;
  while (o < outer) {
    S costs[kInFlight];
    int64_t targets[kInFlight];
    MFK_UNROLL
    for (int k = 0; k < kInFlight; ++k) {
      // Beyond the end, a valid entry is read again and not stored.
      const bool inside = o < outer;
      const int64_t safe_o = inside ? o : outer - 1;
      costs[k] = source[safe_o * from_outer + i * from_inner];
      targets[k] = inside ? o * to_outer + i * to_inner : -1;
      o += step_outer;
      i += step_inner;
      if (i >= inner) {
        i -= inner;
        ++o;
      }
    }
    MFK_UNROLL
    for (int k = 0; k < kInFlight; ++k) {
      if (targets[k] < 0) continue;
      const T cost = widen(costs[k]);
      dense[targets[k]] = admit(negate ? -cost : cost, status);
      if (is_large(cost)) status |= kLarge;
    }
  }
  return status;
}

// Copies the costs of problem `index` into dense rows, with its smaller side as rows, for a group
// that loads kVector costs at a time. Returns this lane's status bits.
template <class T, int kVector, class Group>
MFK_HOST_DEVICE int32_t load_problem(const Group& group, const Batch& batch, int64_t index,
                                     T* dense) {
  const Shape shape = shape_of(batch, index);
  if (shape.rows == 0) return 0;
  const int64_t first = index * batch.batch_stride;
  const int64_t stride = dense_stride<kVector>(shape.columns);
  const auto copy = [&](const auto* source) {
    return copy_costs(group, source + first, shape, batch.maximize, dense, stride);
  };
  int32_t status;
  if constexpr (sizeof(T) == sizeof(double)) {
    status = copy(static_cast<const double*>(batch.cost));
  } else if (batch.element == Element::kHalf) {
    status = copy(static_cast<const Half*>(batch.cost));
  } else if (batch.element == Element::kBFloat16) {
    status = copy(static_cast<const BFloat16*>(batch.cost));
  } else {
    status = copy(static_cast<const float*>(batch.cost));
  }
  group.sync();
  return status;
}

// If a lane met a large cost, scales all costs so that sums of them stay finite.
template <class Group, class P>
MFK_HOST_DEVICE void scale_large(const Group& group, const P& p, double* dense, bool met) {
  const Nearest any = group.nearest({met ? 0.0 : 1.0, group.lane(), group.lane()});
  if (any.distance > 0) return;
  for (int32_t i = 0; i < p.rows; ++i) {
    for (int32_t j = group.lane(); j < p.columns; j += group.lanes()) {
      dense[i * p.costs.row_stride + j] *= kFactorOfLarge;
    }
  }
  group.sync();
}

// Gives every missing edge the same finite cost, above all others.
template <class Group, class P>
MFK_HOST_DEVICE void substitute_missing(const Group& group, const P& p, typename P::Cost* dense) {
  using T = typename P::Cost;
  const int64_t stride = p.costs.row_stride;
  double least = infinity();
  double negative_greatest = infinity();
  for (int32_t i = 0; i < p.rows; ++i) {
    for (int32_t j = group.lane(); j < p.columns; j += group.lanes()) {
      const double cost = dense[i * stride + j];
      if (!is_finite(cost)) continue;
      if (cost < least) least = cost;
      if (-cost < negative_greatest) negative_greatest = -cost;
    }
  }
  least = group.nearest({least, group.lane(), group.lane()}).distance;
  negative_greatest = group.nearest({negative_greatest, group.lane(), group.lane()}).distance;
  const bool none = !(least < infinity());
  const double limit = sizeof(T) == sizeof(float) ? 3.4028234663852886e38 : 1.7976931348623157e308;
  const T cost = static_cast<T>(none ? 1.0 : substitute(least, -negative_greatest, p.rows, limit));
  for (int32_t i = 0; i < p.rows; ++i) {
    for (int32_t j = group.lane(); j < p.columns; j += group.lanes()) {
      T& entry = dense[i * stride + j];
      if (!is_finite(entry)) entry = cost;
    }
  }
  group.sync();
}

// Solves problem `index`, whose costs `load_problem` has stored in `dense`, and stores its
// assignment and status. `memory` and `dense` belong to the group, `status` to the lane.
template <bool kStrict, class T, class Group>
MFK_HOST_DEVICE void solve_loaded(const Group& group, const Batch& batch, int64_t index,
                                  char* memory, T* dense, int32_t status) {
  const Shape shape = shape_of(batch, index);
  int64_t* result = batch.assignment + index * batch.rows;
  bool complete = true;
  Problem<DenseCosts<T>> p = carve<T>(memory, shape.rows, shape.columns, kStrict);
  if (shape.rows > 0) {
    p.costs = {dense, dense_stride<kVectorOf<Group>>(shape.columns)};
    // Not if the indices must be those of SciPy, which does not scale.
    if constexpr (!kStrict && sizeof(T) == sizeof(double)) {
      scale_large(group, p, dense, status & kLarge);
    }
    // At most two iterations; a loop, so that the search is compiled only once.
    for (;;) {
      complete = solve<kStrict>(group, p);
      if (complete || !batch.substitute || (status & kInfeasible)) break;
      status |= kInfeasible;
      substitute_missing(group, p, dense);
    }
    if (!complete) status |= kInfeasible;
  }
  const int32_t used = shape.transposed ? shape.columns : shape.rows;
  for (int64_t i = group.lane(); i < batch.rows; i += group.lanes()) {
    const bool known = complete && shape.rows > 0 && i < used;
    result[i] = !known ? kNone : shape.transposed ? p.row_of_column[i] : p.column_of_row[i];
  }
  group.write_union(batch.status + index, status & ~kLarge);
}

}  // namespace mfk::assignment
