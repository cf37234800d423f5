// A block of memory that starts on a cache line.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace mfk::cpu {

struct BlockDelete {
  void operator()(void* block) const { ::operator delete(block, std::align_val_t{64}); }
};

using Block = std::unique_ptr<void, BlockDelete>;

inline Block allocate(int64_t bytes) {
  return Block(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64}));
}

}  // namespace mfk::cpu
