// Minimum-cost assignment by shortest augmenting paths, for one problem and one group of lanes.
//
// The group is a template parameter: one lane on a CPU, a warp or several warps on a GPU. Every
// lane of the group calls the same functions with the same arguments and owns the columns lane,
// lane + lanes, lane + 2 * lanes, ... The group synchronises between steps.
//
// Rows are the smaller side. +inf means no edge; costs hold no NaN and no -inf here (see `admit`).
// Row and column duals are fp64 whatever the type of the costs: with fp32 duals, costs that were
// clamped to 1e10 would absorb all others by rounding.
//
// A group provides
//   int lane() const, lanes() const;  void sync() const;
//   Nearest nearest(Nearest) const;      the smallest of all lanes' candidates, in every lane
//   int32_t least(int32_t) const;        the smallest of all lanes' numbers, in every lane
//   TwoLeast two_least(TwoLeast) const;  the two smallest of all lanes' values, in every lane
//   static void claim(int32_t* slot, int32_t row);  slot = min(slot, row), unsigned and atomic
//   void write_union(int32_t* word, int32_t bits) const;  *word = bitwise or over all lanes
// where the reductions of `Nearest` and `TwoLeast` also synchronise.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/scalar.h"

namespace mfk::assignment {

enum Status : int32_t {
  kNan = 1,
  kNegativeInfinity = 2,
  kPositiveInfinity = 4,
  kInfeasible = 8,
};

// Beside the status while costs are loaded: one is large.
constexpr int32_t kLarge = 16;

constexpr int32_t kNone = -1;

// After relaxing this many rows, and each time their number has doubled, a search looks for a free
// column among those as near as the nearest: seldom enough to cost little if there is none.
constexpr int32_t kPatience = 4;

MFK_INLINE bool looks_for_free(int32_t relaxed) {
  return relaxed >= kPatience && (relaxed & (relaxed - 1)) == 0;
}

// From this size on, the initial reductions of Jonker and Volgenant save time on square problems.
constexpr int32_t kSquare = 8;

MFK_INLINE double infinity() {
  const uint64_t bits = 0x7ff0000000000000u;
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Converts a cost for the search: NaN and -inf become +inf, no edge, and are noted in the status.
template <class T>
MFK_INLINE T admit(T cost, int32_t& status) {
  if (is_finite(cost)) return cost;
  status |= cost != cost ? kNan : cost < 0 ? kNegativeInfinity : kPositiveInfinity;
  return static_cast<T>(infinity());
}

// From this exponent on, sums that the search forms in fp64 may overflow.
constexpr uint64_t kLargeExponent = 0x7bf0000000000000u;  // 2^960

// The factor that keeps sums of large costs finite: a power of two, which does not change the
// optimum.
constexpr double kFactorOfLarge = 0x1p-64;

MFK_INLINE bool is_large(float) { return false; }
MFK_INLINE bool is_large(double cost) {
  return is_finite(cost) && (bits_of(cost) & 0x7ff0000000000000u) >= kLargeExponent;
}

// A candidate for the column that the search visits next. Among equal distances, a lower rank wins.
struct Nearest {
  double distance;
  int32_t rank;
  int32_t column;
};

MFK_INLINE bool operator<(const Nearest& a, const Nearest& b) {
  return a.distance < b.distance || (a.distance == b.distance && a.rank < b.rank);
}

// The free column that was found to be as near as `best`, or `best` if none was (INT32_MAX).
MFK_INLINE Nearest free_or(int32_t free, const Nearest& best) {
  return free == INT32_MAX ? best : Nearest{best.distance, free, free};
}

// The two smallest reduced costs of a row (equal ones count twice), and the column of the smallest.
struct TwoLeast {
  double least;
  double second;
  int32_t column;

  MFK_INLINE void add(double value, int32_t where) {
    if (value < least) {
      second = least;
      least = value;
      column = where;
    } else if (value < second) {
      second = value;
    }
  }
};

// Merges the two smallest of two parts; among equal values, the lower column wins.
MFK_INLINE TwoLeast join(const TwoLeast& a, const TwoLeast& b) {
  const bool first = (a.least < b.least) | ((a.least == b.least) & (a.column <= b.column));
  const double least = first ? a.least : b.least;
  const double other = first ? b.least : a.least;
  const double second = a.second < b.second ? a.second : b.second;
  return {least, other < second ? other : second, first ? a.column : b.column};
}

// Costs in a dense row-major matrix.
template <class T>
struct DenseCosts {
  using Cost = T;
  const T* data;
  int64_t row_stride;

  MFK_INLINE double operator()(int32_t row, int32_t column) const {
    return data[row * row_stride + column];
  }
};

// One problem with its working memory. All arrays belong to the whole group.
template <class Costs, class PathIndex = int32_t>
struct Problem {
  using Cost = typename Costs::Cost;
  Costs costs;
  int32_t rows;
  int32_t columns;
  double* row_dual;     // [rows]
  double* column_dual;  // [columns]; -inf while the column is in the tree, so it is never relaxed
  double* distance;     // [columns]; +inf while the column is in the tree, so it is never nearest
  PathIndex* path;      // [columns] the row from which the column was reached
  int32_t* column_of_row;  // [rows]
  int32_t* row_of_column;  // [columns]
  int32_t* tree_column;    // [rows] the columns of the tree, in the order of scanning,
  double* tree_distance;   // [rows] their distances,
  double* tree_dual;       // [rows] and their duals before
  int32_t* remaining;      // [columns] strict only: the columns outside the tree in SciPy's order,
  int32_t* position;       // [columns] and the position of each column in it
};

// The number of costs of a row that a lane loads at a time.
template <class Group>
constexpr int kVectorOf = 1;

// The operations of a group on a row. Groups with vector instructions specialise this.
template <class Group>
struct Scan {
  // Relaxes the edges of `row` and returns the nearest column outside the tree. `base` is the
  // length of the path to `row`. Strict: with SciPy's order of additions and choice among equal
  // distances.
  template <bool kFirst, bool kStrict, class P>
  static MFK_HOST_DEVICE Nearest relax(const Group& group, const P& p, int32_t row, double base) {
    const double row_dual = p.row_dual[row];
    Nearest best{infinity(), INT32_MAX, kNone};
    for (int32_t j = group.lane(); j < p.columns; j += group.lanes()) {
      const double cost = p.costs(row, j);
      const double reduced = kStrict ? base + cost - row_dual - p.column_dual[j]
                                     : (cost - p.column_dual[j]) + (base - row_dual);
      double distance;
      if (kFirst || reduced < p.distance[j]) {
        p.distance[j] = distance = reduced;
        p.path[j] = row;
      } else {
        distance = p.distance[j];
      }
      if (distance > best.distance) continue;
      const Nearest here{distance, rank<kStrict>(p, j), j};
      if (here < best) best = here;
    }
    return group.nearest(best);
  }

  // Among equally near columns, prefers a free one: it ends the search, which might otherwise visit
  // all assigned columns first.
  template <class P>
  static MFK_HOST_DEVICE Nearest free_as_near(const Group& group, const P& p, const Nearest& best) {
    int32_t free = INT32_MAX;
    for (int32_t j = group.lane(); j < p.columns; j += group.lanes()) {
      if (p.distance[j] == best.distance && p.row_of_column[j] == kNone) free = j;
    }
    return free_or(group.least(free), best);
  }

  // SciPy keeps the columns in a list, in which the last one replaces a column that is removed.
  // Among equal distances, the last unassigned column of the list wins, otherwise the first
  // assigned one.
  template <bool kStrict, class P>
  static MFK_INLINE int32_t rank(const P& p, int32_t column) {
    if constexpr (!kStrict) {
      return column;
    } else {
      const int32_t position = p.position[column];
      return p.row_of_column[column] == kNone ? -1 - position : position;
    }
  }

  // The position of the smallest cost of a row (or column), or kNone; its value becomes the dual.
  template <bool kOfRow, class P>
  static MFK_INLINE int32_t least(const P& p, int32_t line, double* dual) {
    double best = infinity();
    int32_t where = kNone;
    const int32_t count = kOfRow ? p.columns : p.rows;
    for (int32_t k = 0; k < count; ++k) {
      const double cost = kOfRow ? p.costs(line, k) : p.costs(k, line);
      if (cost < best) {
        best = cost;
        where = k;
      }
    }
    *dual = where == kNone ? 0.0 : best;
    return where;
  }

  // Sets the dual of each row to its smallest cost; the row claims a column that has this cost.
  template <class P>
  static MFK_HOST_DEVICE void claim_minima(const Group& group, const P& p) {
    for (int32_t i = group.lane(); i < p.rows; i += group.lanes()) {
      const int32_t column = least<true>(p, i, &p.row_dual[i]);
      p.column_of_row[i] = column;
      if (column != kNone) Group::claim(&p.row_of_column[column], i);
    }
  }

  // The two smallest values of `cost - column dual` in a row.
  template <class P>
  static MFK_HOST_DEVICE TwoLeast two_least(const Group& group, const P& p, int32_t row) {
    TwoLeast best{infinity(), infinity(), kNone};
    for (int32_t j = group.lane(); j < p.columns; j += group.lanes()) {
      best.add(p.costs(row, j) - p.column_dual[j], j);
    }
    return group.two_least(best);
  }

  // Sets the dual of each column to its smallest cost, and `path` to a row that has this cost.
  template <class P>
  static MFK_HOST_DEVICE void column_minima(const Group& group, const P& p) {
    for (int32_t j = group.lane(); j < p.columns; j += group.lanes()) {
      p.path[j] = least<false>(p, j, &p.column_dual[j]);
    }
  }
};

// Starts without assignments and with duals of 0. In a rectangular problem, unassigned columns must
// keep the dual 0.
template <class Group, class P>
MFK_HOST_DEVICE void reset(const Group& group, const P& p) {
  for (int32_t j = group.lane(); j < p.columns; j += group.lanes()) {
    p.column_dual[j] = 0.0;
    p.row_of_column[j] = kNone;
  }
  for (int32_t i = group.lane(); i < p.rows; i += group.lanes()) {
    p.row_dual[i] = 0.0;
    p.column_of_row[i] = kNone;
  }
  group.sync();
}

// Starts with each row at its smallest cost; of the rows that claim a column, the first one gets
// it.
template <class Group, class P>
MFK_HOST_DEVICE void start_at_row_minima(const Group& group, const P& p) {
  Scan<Group>::claim_minima(group, p);
  group.sync();
  for (int32_t i = group.lane(); i < p.rows; i += group.lanes()) {
    const int32_t column = p.column_of_row[i];
    if (column != kNone && p.row_of_column[column] != i) p.column_of_row[i] = kNone;
  }
  group.sync();
}

// The initialisation of Jonker and Volgenant (1987) for square problems: column reduction, then
// reduction transfer. All columns are assigned in the end, so that column duals may have any value.
template <class Group, class P>
MFK_HOST_DEVICE void start_at_column_minima(const Group& group, const P& p) {
  Scan<Group>::column_minima(group, p);
  group.sync();
  // Of the columns whose smallest cost is in the same row, the first one gets the row;
  // `tree_column` counts them.
  if (group.lane() == 0) {
    for (int32_t i = 0; i < p.rows; ++i) p.tree_column[i] = 0;
    for (int32_t j = 0; j < p.columns; ++j) {
      const int32_t row = static_cast<int32_t>(p.path[j]);
      if (row == kNone || p.tree_column[row]++ > 0) continue;
      p.column_of_row[row] = j;
      p.row_of_column[j] = row;
    }
  }
  group.sync();
  for (int32_t i = 0; i < p.rows; ++i) {
    if (p.tree_column[i] != 1) continue;
    const int32_t column = p.column_of_row[i];
    const double dual = p.column_dual[column];
    group.sync();
    if (group.lane() == 0) p.column_dual[column] = -infinity();  // excludes it from the minimum
    group.sync();
    const double least = Scan<Group>::two_least(group, p, i).least;
    if (group.lane() == 0) p.column_dual[column] = least < infinity() ? dual - least : dual;
    group.sync();
  }
}

// The augmenting row reduction of Jonker and Volgenant (1987). A free row takes its nearest column
// and lowers that column's dual until the second nearest is as near; the row that had the column
// becomes free and continues at once. Unassigned columns keep their duals, so that it is valid for
// rectangular problems too. `turns` limits the iterations; rows that are still free are assigned by
// augmentation.
template <class Group, class P>
MFK_HOST_DEVICE void reduce_rows(const Group& group, const P& p, int32_t turns) {
  int32_t next = 0;
  int32_t row = kNone;
  for (; turns > 0; --turns) {
    if (row == kNone) {
      while (next < p.rows && p.column_of_row[next] != kNone) ++next;
      if (next == p.rows) break;
      row = next++;
    }
    const TwoLeast best = Scan<Group>::two_least(group, p, row);
    // With fewer than two edges there is no difference to lower the dual by.
    if (!(best.second < infinity())) {
      row = kNone;
      continue;
    }
    const double dual = p.column_dual[best.column];
    const double lowered = dual - (best.second - best.least);
    const int32_t loser = p.row_of_column[best.column];
    if (lowered < dual || loser == kNone) {
      group.sync();
      if (group.lane() == 0) {
        p.column_dual[best.column] = lowered;
        p.column_of_row[row] = best.column;
        p.row_of_column[best.column] = row;
        if (loser != kNone) p.column_of_row[loser] = kNone;
      }
      group.sync();
      row = loser;
    } else {
      row = kNone;
    }
  }
}

// Computes the row duals from the column duals, such that assigned edges have the reduced cost 0.
template <class Group, class P>
MFK_HOST_DEVICE void fit_row_duals(const Group& group, const P& p) {
  for (int32_t i = group.lane(); i < p.rows; i += group.lanes()) {
    const int32_t column = p.column_of_row[i];
    p.row_dual[i] = column == kNone ? 0.0 : p.costs(i, column) - p.column_dual[column];
  }
  group.sync();
}

// Flips the assignment along the augmenting path that ends at column `end`.
template <class P>
MFK_HOST_DEVICE void assign_along_path(const P& p, int32_t start, const Nearest& end,
                                       int32_t scanned) {
  p.row_dual[start] += end.distance;
  int32_t column = end.column;
  for (int32_t turn = 0; turn <= scanned; ++turn) {
    const int32_t row = static_cast<int32_t>(p.path[column]);
    p.row_of_column[column] = row;
    const int32_t next = p.column_of_row[row];
    p.column_of_row[row] = column;
    if (row == start) break;
    column = next;
  }
}

// Assigns row `start` along a shortest augmenting path. False: no path of finite cost exists.
template <bool kStrict, class Group, class P>
MFK_HOST_DEVICE bool augment(const Group& group, const P& p, int32_t start) {
  int32_t remaining = p.columns;
  if constexpr (kStrict) {
    for (int32_t j = group.lane(); j < p.columns; j += group.lanes()) {
      p.remaining[j] = p.columns - 1 - j;
      p.position[j] = p.columns - 1 - j;
    }
    group.sync();
  }

  Nearest best = Scan<Group>::template relax<true, kStrict>(group, p, start, 0.0);
  int32_t scanned = 0;
  bool reached = false;
  // Each iteration but the last adds an assigned column to the tree; there are fewer than `rows`.
  while (scanned < p.rows && best.distance < infinity()) {
    int32_t row = p.row_of_column[best.column];
    if (!kStrict && row != kNone && looks_for_free(scanned + 1)) {
      best = Scan<Group>::free_as_near(group, p, best);
      row = p.row_of_column[best.column];
    }
    if (row == kNone) {
      reached = true;
      break;
    }
    if (group.lane() == 0) {
      p.tree_column[scanned] = best.column;
      p.tree_distance[scanned] = best.distance;
      p.tree_dual[scanned] = p.column_dual[best.column];
      p.column_dual[best.column] = -infinity();
      p.distance[best.column] = infinity();
      if constexpr (kStrict) {
        const int32_t last = p.remaining[remaining - 1];
        const int32_t position = p.position[best.column];
        p.remaining[position] = last;
        p.position[last] = position;
      }
    }
    group.sync();
    ++scanned;
    --remaining;
    best = Scan<Group>::template relax<false, kStrict>(group, p, row, best.distance);
  }

  // Restore the duals of the columns in the tree, lowered by the difference between the distance of
  // the end and theirs.
  for (int32_t k = group.lane(); k < scanned; k += group.lanes()) {
    const int32_t column = p.tree_column[k];
    const double slack = reached ? best.distance - p.tree_distance[k] : 0.0;
    p.row_dual[p.row_of_column[column]] += slack;
    p.column_dual[column] = p.tree_dual[k] - slack;
  }
  group.sync();
  if (!reached) return false;

  if (group.lane() == 0) assign_along_path(p, start, best, scanned);
  group.sync();
  return true;
}

// Solves the problem. False: it is infeasible, and the assignment is not complete.
template <bool kStrict, class Group, class P>
MFK_HOST_DEVICE bool solve(const Group& group, const P& p) {
  reset(group, p);
  if constexpr (!kStrict) {
    if (p.rows == p.columns && p.rows >= kSquare) {
      start_at_column_minima(group, p);
      reduce_rows(group, p, 4 * p.rows);
      fit_row_duals(group, p);
    } else {
      start_at_row_minima(group, p);
    }
  }
  for (int32_t i = 0; i < p.rows; ++i) {
    if (p.column_of_row[i] == kNone && !augment<kStrict>(group, p, i)) return false;
  }
  return true;
}

// The cost of a missing edge in an infeasible problem, so large that as few of them as possible are
// used.
MFK_INLINE double substitute(double least, double greatest, int32_t rows, double limit) {
  const double range = greatest - least > 1.0 ? greatest - least : 1.0;
  const double cost = greatest + (1.0 + rows) * range;
  return cost < limit ? cost : limit;
}

}  // namespace mfk::assignment
