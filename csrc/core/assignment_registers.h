// The search of `assignment.h` for a group on a GPU whose lanes keep their columns in registers.
//
// A step of the search is a chain of dependent loads, additions and reductions, whose latency no
// other warp hides. With distances, duals and paths in registers, and the number of columns per
// lane known at compile time, a step of a warp has few loads in its chain and no barrier.
//
// There are two searches. With few columns per lane, the assigned rows are in registers too, and a
// step has no divergent branch. With many columns, the setup of that takes longer than it saves if
// searches are short: on an H200, 208 problems of 300x100 took 316 microseconds instead of 203,
// although those of 300x300 took 3441 instead of 3747.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/assignment.h"

namespace mfk::assignment {

// A group with at most kPerLane columns per lane, in vectors of kVector adjacent columns, which are
// loaded at once.
template <class Group, int kPerLane, int kVector = 1>
struct InRegisters : Group {
  static_assert(kPerLane <= 32, "a lane notes its columns of the tree in 32 bits");
  static_assert(kVector == 1 || kVector == 2 || kVector == 4, "one load takes 1, 2 or 4 columns");
  static_assert(kPerLane % kVector == 0, "columns come in vectors");
  MFK_HOST_DEVICE explicit InRegisters(const Group& group) : Group(group) {}

  // The k-th column of this lane, which may be beyond the last one.
  MFK_INLINE int32_t column(int k) const {
    return (k / kVector * this->lanes() + this->lane()) * kVector + k % kVector;
  }

  // Loads the costs of this lane's columns in a row; those beyond the last column are arbitrary.
  template <class T>
  MFK_INLINE void load(const DenseCosts<T>& costs, int32_t row, T (&cost)[kPerLane]) const {
    const T* first = costs.data + row * costs.row_stride + this->lane() * kVector;
    MFK_UNROLL
    for (int k = 0; k < kPerLane; k += kVector) {
      constexpr size_t kBytes = kVector * sizeof(T);
      const T* vector = first + k * this->lanes();
      memcpy(cost + k, __builtin_assume_aligned(vector, kBytes < 16 ? kBytes : 16), kBytes);
    }
  }
};

// The largest number of columns per lane for which `SearchOfFew` is used.
constexpr int kFew = 4;

template <class Group, int kPerLane, int kVector>
constexpr int kVectorOf<InRegisters<Group, kPerLane, kVector>> = kVector;

// The best of values in registers, by a tree reduction: the chain has log2(kCount) comparisons.
template <int kCount, class Value, class Better>
MFK_INLINE Value tournament(Value (&values)[kCount], const Better& better) {
  MFK_UNROLL
  for (int distance = 1; distance < kCount; distance *= 2) {
    MFK_UNROLL
    for (int k = 0; k + distance < kCount; k += 2 * distance) {
      values[k] = better(values[k], values[k + distance]);
    }
  }
  return values[0];
}

template <class Group, int kPerLane, int kVector>
struct Scan<InRegisters<Group, kPerLane, kVector>> : Scan<Group> {
  // As Scan<Group>::two_least.
  template <class P>
  static MFK_HOST_DEVICE TwoLeast two_least(const InRegisters<Group, kPerLane, kVector>& group,
                                            const P& p, int32_t row) {
    typename P::Cost cost[kPerLane];
    group.load(p.costs, row, cost);
    TwoLeast found[kPerLane];
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      const int32_t j = group.column(k);
      const bool exists = j < p.columns;
      const double reduced = cost[k] - p.column_dual[exists ? j : 0];
      found[k] = {exists ? reduced : infinity(), infinity(), j};
    }
    if constexpr (kPerLane <= kFew) {
      return group.two_least(
          tournament(found, [](const TwoLeast& a, const TwoLeast& b) { return join(a, b); }));
    } else {
      TwoLeast best{infinity(), infinity(), kNone};
      MFK_UNROLL
      for (int k = 0; k < kPerLane; ++k) best.add(found[k].least, found[k].column);
      return group.two_least(best);
    }
  }
};

// The state of a lane's columns that both searches have. A column that does not exist stays at an
// infinite distance, because its dual is -inf, whatever is loaded as its cost. Costs are loaded for
// all kPerLane columns, so that the memory after the last row must be readable.
template <class Group, int kPerLane, class P>
class LaneColumns {
 protected:
  MFK_HOST_DEVICE LaneColumns(const Group& group, const P& p) : group_(group), p_(p) {
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      dual_[k] = exists(k) ? p.column_dual[column(k)] : -infinity();
      distance_[k] = infinity();
      path_[k] = kNone;
    }
  }

  MFK_INLINE int32_t column(int k) const { return group_.column(k); }
  MFK_INLINE bool exists(int k) const { return column(k) < p_.columns; }
  MFK_INLINE bool in_tree(int k) const { return tree_ >> k & 1u; }

  // Calls `f` with the number of each column in this lane and its distance through `row`.
  template <class F>
  MFK_INLINE void for_each_distance(int32_t row, double base, const F& f) const {
    const double offset = base - p_.row_dual[row];
    typename P::Cost cost[kPerLane];
    group_.load(p_.costs, row, cost);
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) f(k, (static_cast<double>(cost[k]) - dual_[k]) + offset);
  }

  // As Scan::free_as_near.
  MFK_HOST_DEVICE Nearest free_as_near(const Nearest& best) const {
    uint32_t near = 0;
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      near |= static_cast<uint32_t>(distance_[k] == best.distance) << k;
    }
    int32_t free = INT32_MAX;
    for (int k = 0; near != 0; ++k, near >>= 1) {
      if ((near & 1u) != 0 && p_.row_of_column[column(k)] == kNone) free = column(k);
    }
    return free_or(group_.least(free), best);
  }

  // Stores the paths in memory, and calls `lower` for each column in the tree if a path was found.
  template <class F>
  MFK_INLINE void write_back(bool reached, const F& lower) const {
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      if (!exists(k)) continue;
      p_.path[column(k)] = path_[k];
      if (reached && in_tree(k)) lower(k);
    }
    group_.sync();
  }

  const Group& group_;
  const P& p_;
  double dual_[kPerLane];
  double distance_[kPerLane];
  int32_t path_[kPerLane];
  uint32_t tree_ = 0;
};

// The search with few columns per lane. A column in the tree is treated like one that does not
// exist.
template <class Group, int kPerLane, class P>
class SearchOfFew : LaneColumns<Group, kPerLane, P> {
  using Columns = LaneColumns<Group, kPerLane, P>;
  using Columns::column, Columns::exists, Columns::group_, Columns::p_;
  using Columns::distance_, Columns::dual_, Columns::path_, Columns::tree_;

 public:
  using Columns::free_as_near;
  // Of equals in two lanes a free one wins anyway, so what is left is seldom worth a look.
  static constexpr int32_t kPatience = 16;

  MFK_HOST_DEVICE SearchOfFew(const Group& group, const P& p) : Columns(group, p) {
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      place_[k] = exists(k) ? (p.row_of_column[column(k)] + 1) << 16 | column(k) : 0;
    }
  }

  // A place packs a column and its row; both are below 4096 in groups that keep columns in
  // registers.
  static MFK_INLINE int32_t column_at(int32_t place) { return place & 0xffff; }
  static MFK_INLINE int32_t row_at(int32_t place) { return (place >> 16) - 1; }

  MFK_INLINE int32_t row_of(const Nearest& best) const { return row_at(best.column); }
  static MFK_INLINE int32_t column_of(const Nearest& best) { return column_at(best.column); }

  // As Scan::relax, but the result has its place as rank and as column; among equal distances, an
  // unassigned column wins.
  MFK_HOST_DEVICE Nearest relax(int32_t row, double base) {
    Nearest found[kPerLane];
    this->for_each_distance(row, base, [&](int k, double reduced) {
      const bool nearer = reduced < distance_[k];
      distance_[k] = nearer ? reduced : distance_[k];
      path_[k] = nearer ? row : path_[k];
      found[k] = {distance_[k], place_[k], place_[k]};
    });
    const Nearest nearest = tournament(
        found, [](const Nearest& a, const Nearest& b) { return b.distance < a.distance ? b : a; });
    return group_.nearest_place(nearest.distance, nearest.column);
  }

  // Adds the nearest column to the tree: from now on, it is neither relaxed nor a candidate.
  MFK_HOST_DEVICE void take(const Nearest& nearest) {
    const int32_t joining = column_of(nearest);
    bool here = false;
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      const bool joins = column(k) == joining;
      here |= joins;
      dual_[k] = joins ? -infinity() : dual_[k];
      distance_[k] = joins ? infinity() : distance_[k];
      tree_ |= static_cast<uint32_t>(joins) << k;
    }
    if (here) p_.distance[joining] = nearest.distance;
  }

  // Stores paths and duals in memory. The duals of columns in the tree are lowered by the
  // difference between `end`, the distance of the end of the path, and their own distance.
  MFK_HOST_DEVICE void finish(bool reached, double end) {
    this->write_back(reached, [&](int k) {
      const double slack = end - p_.distance[column(k)];
      p_.row_dual[row_at(place_[k])] += slack;
      p_.column_dual[column(k)] -= slack;
    });
  }

 private:
  int32_t place_[kPerLane];
};

// The search with many columns per lane.
template <class Group, int kPerLane, class P>
class SearchOfMany : LaneColumns<Group, kPerLane, P> {
  using Columns = LaneColumns<Group, kPerLane, P>;
  using Columns::column, Columns::in_tree, Columns::group_, Columns::p_;
  using Columns::distance_, Columns::dual_, Columns::path_, Columns::tree_;

 public:
  using Columns::free_as_near;
  static constexpr int32_t kPatience = assignment::kPatience;

  MFK_HOST_DEVICE SearchOfMany(const Group& group, const P& p) : Columns(group, p) {}

  MFK_INLINE int32_t row_of(const Nearest& best) const { return p_.row_of_column[best.column]; }
  static MFK_INLINE int32_t column_of(const Nearest& best) { return best.column; }

  // As Scan::relax.
  MFK_HOST_DEVICE Nearest relax(int32_t row, double base) {
    Nearest best{infinity(), INT32_MAX, kNone};
    this->for_each_distance(row, base, [&](int k, double reduced) {
      const bool open = !in_tree(k);
      if (open && reduced < distance_[k]) {
        distance_[k] = reduced;
        path_[k] = row;
      }
      if (open && distance_[k] < best.distance) best = {distance_[k], column(k), column(k)};
    });
    return group_.nearest(best);
  }

  // As in `SearchOfFew`.
  MFK_HOST_DEVICE void take(const Nearest& nearest) {
    MFK_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      tree_ |= static_cast<uint32_t>(column(k) == nearest.column) << k;
    }
  }

  // As in `SearchOfFew`.
  MFK_HOST_DEVICE void finish(bool reached, double end) {
    this->write_back(reached, [&](int k) {
      const double slack = end - distance_[k];
      p_.row_dual[p_.row_of_column[column(k)]] += slack;
      p_.column_dual[column(k)] = dual_[k] - slack;
    });
  }
};

// As `augment`, but not for the strict search, which needs SciPy's list of columns.
template <bool kStrict, class Group, int kPerLane, int kVector, class P>
MFK_HOST_DEVICE bool augment(const InRegisters<Group, kPerLane, kVector>& group, const P& p,
                             int32_t start) {
  static_assert(!kStrict, "the order of SciPy's columns is kept in memory");
  using Own = InRegisters<Group, kPerLane, kVector>;
  using Search = std::conditional_t<kPerLane <= kFew, SearchOfFew<Own, kPerLane, P>,
                                    SearchOfMany<Own, kPerLane, P>>;
  Search search(group, p);
  Nearest best = search.relax(start, 0.0);
  bool reached = false;
  int32_t scanned = 0;
  // Free columns are looked for outside of the loop of steps, which would else all take longer.
  for (int32_t stop = Search::kPatience - 1;; stop = 2 * stop + 1) {
    for (; scanned < stop && best.distance < infinity(); ++scanned) {
      const int32_t row = search.row_of(best);
      if (row == kNone) {
        reached = true;
        break;
      }
      search.take(best);
      best = search.relax(row, best.distance);
    }
    if (scanned < stop || scanned >= p.rows || !(best.distance < infinity())) break;
    best = search.free_as_near(best);
  }
  search.finish(reached, best.distance);
  const int32_t column = Search::column_of(best);
  if (reached && group.lane() == 0) {
    assign_along_path(p, start, {best.distance, column, column}, scanned);
  }
  group.sync();
  return reached;
}

}  // namespace mfk::assignment
