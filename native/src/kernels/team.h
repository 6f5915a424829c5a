// The threads that compute one operation together: OpenMP's pool, which llama.cpp's CPU backend
// uses as well, so that both share one.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernels.h"

namespace inferos::kernels {

// The place of the calling thread in its parallel region.
inline void team_place(int & thread, int & count) {
#ifdef _OPENMP
    thread = omp_get_thread_num();
    count  = omp_get_num_threads();
#else
    thread = 0;
    count  = 1;
#endif
}

// Memory that only grows, aligned to cache lines. Asked for outside of parallel regions.
class Scratch {
  public:
    uint8_t * get(size_t n_bytes) {
        if (n_bytes > size_) {
            memory_.reset();
            size_ = 0;
            memory_.reset(static_cast<uint8_t *>(::operator new(n_bytes, std::align_val_t{kLine})));
            size_ = n_bytes;
        }
        return memory_.get();
    }

  private:
    struct Free {
        void operator()(uint8_t * p) const { ::operator delete(p, std::align_val_t{kLine}); }
    };
    std::unique_ptr<uint8_t, Free> memory_;
    size_t                         size_ = 0;
};

// Hands out items in runs that shrink towards the end: long runs keep reads in a line, short ones
// let all threads end together.
class Queue {
  public:
    Queue(int64_t n, int n_threads, int64_t longest = INT64_MAX)
        : n_(n), share_(2 * n_threads), longest_(longest) {}

    // The next run; false: there is none.
    bool claim(int64_t & first, int64_t & end) {
        int64_t at = next_.load(std::memory_order_relaxed);
        for (;;) {
            if (at >= n_) {
                return false;
            }
            int64_t run = (n_ - at) / share_;
            run         = run > longest_ ? longest_ : run < 1 ? 1 : run;
            if (next_.compare_exchange_weak(at, at + run, std::memory_order_relaxed)) {
                first = at;
                end   = at + run;
                return true;
            }
        }
    }

  private:
    alignas(kLine) std::atomic<int64_t> next_{0};
    alignas(kLine) int64_t n_;
    int64_t share_;
    int64_t longest_;
};

// A phase of work that later phases need whole. Whoever comes takes pieces; nobody waits for a
// thread that has not come yet, as at a barrier, but only for pieces that were begun.
class Phase {
  public:
    explicit Phase(int64_t n) : n_(n) {}

    template <typename Work> void run(Work work) {
        for (;;) {
            const int64_t piece = next_.fetch_add(1, std::memory_order_relaxed);
            if (piece >= n_) {
                break;
            }
            work(piece);
            done_.fetch_add(1, std::memory_order_release);
        }
        for (int spins = 0; done_.load(std::memory_order_acquire) < n_; spins++) {
            if (spins >= kSpins) {
                std::this_thread::yield();  // its thread may need this processor
            }
        }
    }

  private:
    static constexpr int kSpins = 2000;
    alignas(kLine) std::atomic<int64_t> next_{0};
    alignas(kLine) std::atomic<int64_t> done_{0};
    alignas(kLine) int64_t n_;
};

}  // namespace inferos::kernels
