// An operation of a graph, prepared for a team.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "team.h"

namespace inferos::kernels {

class Operation {
  public:
    // Every member calls it; returns when the whole operation has been computed, or is called off.
    virtual void work(const Member & me) = 0;

    // Memory that it works with, aligned to cache lines; operations that follow each other share it.
    size_t scratch_bytes() const { return scratch_bytes_; }
    virtual void place(uint8_t * scratch) = 0;

  protected:
    explicit Operation(size_t scratch_bytes) : scratch_bytes_(scratch_bytes) {}
    ~Operation() = default;  // they own nothing

  private:
    size_t scratch_bytes_;
};

// Memory of a graph's operations, given back all at once. What lies in it is not destroyed.
class Arena {
  public:
    template <class Made, class... Arguments> Made * make(Arguments &&... arguments) {
        static_assert(sizeof(Made) <= kChunkBytes && alignof(Made) <= kLine);
        return new (take(sizeof(Made))) Made(std::forward<Arguments>(arguments)...);
    }
    void clear() { chunk_ = used_ = 0; }

  private:
    static constexpr size_t kChunkBytes = 64 * 1024;
    struct alignas(kLine) Chunk {
        uint8_t bytes[kChunkBytes];
    };

    void * take(size_t n_bytes) {
        n_bytes = (n_bytes + kLine - 1) / kLine * kLine;
        if (used_ + n_bytes > kChunkBytes) {
            chunk_++;
            used_ = 0;
        }
        if (chunk_ == chunks_.size()) {
            chunks_.emplace_back(new Chunk);
        }
        uint8_t * at = chunks_[chunk_]->bytes + used_;
        used_ += n_bytes;
        return at;
    }

    std::vector<std::unique_ptr<Chunk>> chunks_;
    size_t                              chunk_ = 0, used_ = 0;
};

// Computes one operation. False: no memory.
template <class Prepared>
bool compute_alone(Prepared & operation, int n_members, Scratch & scratch) {
    try {
        operation.place(scratch.get(operation.scratch_bytes()));
    } catch (const std::bad_alloc &) {
        return false;
    }
    const auto work = [&](const Member & me) { operation.work(me); };
    Team::of_this_thread().call(n_members, false, Team::kNoKind, work);
    return true;
}

}  // namespace inferos::kernels
