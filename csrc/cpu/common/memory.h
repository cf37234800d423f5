// Working memory, aligned to cache lines.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "core/integers.h"

namespace mfk::cpu {

// The size of a cache line and of the widest vector.
constexpr int64_t kAlignment = 64;

struct BlockDelete {
  void operator()(void* block) const { ::operator delete(block, std::align_val_t{kAlignment}); }
};

using Block = std::unique_ptr<void, BlockDelete>;

inline Block allocate(int64_t bytes) {
  return Block(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{kAlignment}));
}

// Asks for huge pages for large new memory, as NumPy does: a kernel that writes all of it may
// otherwise spend more time in page faults of 4 KiB than in its computation.
inline void prefer_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kLargePage = int64_t{1} << 21;
  if (bytes < 2 * kLargePage) return;
  const auto address = reinterpret_cast<int64_t>(memory);
  const int64_t begin = round_up(address, kLargePage);
  const int64_t end = (address + bytes) / kLargePage * kLargePage;
  madvise(reinterpret_cast<void*>(begin), static_cast<std::size_t>(end - begin), MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// Hands out aligned arrays of a block of memory. With a null block, it only counts the bytes.
class Arena {
 public:
  MFK_INLINE explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  MFK_INLINE T* take(int64_t count) {
    char* array = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    return reinterpret_cast<T*>(array);
  }

  MFK_INLINE int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace mfk::cpu
