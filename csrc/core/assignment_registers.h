// The search of `assignment.h` for a group on a GPU whose lanes keep their columns in registers.
//
// A step of the search is a chain of dependent loads, additions and reductions, and nothing else
// runs on its scheduler. With distances, duals and the path in registers, and with the number of a
// lane's columns known to the compiler, a step has two loads in its chain and no barrier.
#pragma once

#include <cstdint>

#include "core/assignment.h"

namespace mfk::assignment {

// A group that has at most kPerLane columns per lane.
template <class Group, int kPerLane>
struct InRegisters : Group {
  static_assert(kPerLane <= 32, "a lane notes its columns of the tree in 32 bits");
  MFK_HOST_DEVICE explicit InRegisters(const Group& group) : Group(group) {}
};

template <class Group, int kPerLane>
struct Scan<InRegisters<Group, kPerLane>> : Scan<Group> {
  // As Scan<Group>::two_least; columns that do not exist repeat the last one and do not count.
  template <class P>
  static MFK_HOST_DEVICE TwoLeast two_least(const Group& group, const P& p, int32_t row) {
    double reduced[kPerLane];
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      const int32_t j = group.lane() + k * group.lanes();
      const int32_t safe = j < p.columns ? j : p.columns - 1;
      reduced[k] = j < p.columns ? p.costs(row, safe) - p.column_dual[safe] : infinity();
    }
    TwoLeast best{infinity(), infinity(), kNone};
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) best.add(reduced[k], group.lane() + k * group.lanes());
    return group.two_least(best);
  }
};

// A lane's columns during one search.
template <class Group, int kPerLane, class P>
class SearchInRegisters {
 public:
  MFK_HOST_DEVICE SearchInRegisters(const Group& group, const P& p) : group_(group), p_(p) {
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      // A column that does not exist is at an infinite distance, whatever it costs.
      dual_[k] = exists(k) ? p.column_dual[column(k)] : -infinity();
      distance_[k] = infinity();
      path_[k] = kNone;
    }
  }

  // As Scan::relax.
  MFK_HOST_DEVICE Nearest relax(int32_t row, double base) {
    const double offset = base - p_.row_dual[row];
    const auto* costs = p_.costs.data + row * p_.costs.row_stride;
    typename P::Cost cost[kPerLane];
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) cost[k] = costs[exists(k) ? column(k) : p_.columns - 1];
    Nearest best{infinity(), INT32_MAX, kNone};
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      const bool open = !(tree_ >> k & 1u);
      const double reduced = (static_cast<double>(cost[k]) - dual_[k]) + offset;
      if (open && reduced < distance_[k]) {
        distance_[k] = reduced;
        path_[k] = row;
      }
      if (open && distance_[k] < best.distance) best = {distance_[k], column(k), column(k)};
    }
    return group_.nearest(best);
  }

  // The column joins the tree: it is neither relaxed nor nearest any more.
  MFK_HOST_DEVICE void take(int32_t column) {
    if (column % group_.lanes() == group_.lane()) tree_ |= 1u << (column / group_.lanes());
  }

  // Path and duals go back to memory; the duals of the tree are lowered by how much nearer than the
  // end, at distance `end`, their columns were.
  MFK_HOST_DEVICE void finish(bool reached, double end) {
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      if (!exists(k)) continue;
      p_.path[column(k)] = path_[k];
      if (!reached || !(tree_ >> k & 1u)) continue;
      const double slack = end - distance_[k];
      p_.row_dual[p_.row_of_column[column(k)]] += slack;
      p_.column_dual[column(k)] = dual_[k] - slack;
    }
    group_.sync();
  }

 private:
  MFK_INLINE int32_t column(int k) const { return group_.lane() + k * group_.lanes(); }
  MFK_INLINE bool exists(int k) const { return column(k) < p_.columns; }

  const Group& group_;
  const P& p_;
  double dual_[kPerLane];
  double distance_[kPerLane];
  int32_t path_[kPerLane];
  uint32_t tree_ = 0;
};

// As `augment`, not strict: the strict search needs SciPy's list of columns.
template <bool kStrict, class Group, int kPerLane, class P>
MFK_HOST_DEVICE bool augment(const InRegisters<Group, kPerLane>& group, const P& p, int32_t start) {
  static_assert(!kStrict, "the order of SciPy's columns is kept in memory");
  SearchInRegisters<Group, kPerLane, P> search(group, p);
  Nearest best = search.relax(start, 0.0);
  bool reached = false;
  int32_t scanned = 0;
  for (; scanned < p.rows && best.distance < infinity(); ++scanned) {
    const int32_t row = p.row_of_column[best.column];
    if (row == kNone) {
      reached = true;
      break;
    }
    search.take(best.column);
    best = search.relax(row, best.distance);
  }
  search.finish(reached, best.distance);
  if (reached && group.lane() == 0) assign_along_path(p, start, best, scanned);
  group.sync();
  return reached;
}

}  // namespace mfk::assignment
