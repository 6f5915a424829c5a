// The threads that compute a graph together. The caller works too. The others are threads of its own,
// which look for work for some microseconds after each call and then sleep, or those of OpenMP, where
// llama.cpp computes parts of the same graph with them.
//
// Work is claimed in pieces. At the end of an operation its pieces are waited for, but never a thread
// that has claimed none: one that another program keeps from running holds nobody up. Beside other
// programs fewer are called, where that is faster (crew.h).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>

#include "crew.h"
#include "kernels.h"

namespace inferos::kernels {

class Team;

// A thread while it works on a call; the caller is number 0.
struct Member {
    Team & team;
    int    index;
};

// A count that threads wait for: they spin for a short time, then sleep until it is raised.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    // Raises it; costs a system call only if somebody sleeps.
    void raise();
    // Until ready(), which is asked again whenever the count is raised.
    template <class Ready> void sleep_until(Ready ready) {
        for (;;) {
            const uint32_t seen = value();
            if (ready()) {
                return;
            }
            sleep(seen);
        }
    }

  private:
    // Unless it has been raised since it was `seen`; may return early.
    void sleep(uint32_t seen);

    alignas(kLine) std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> n_asleep_{0};
};

class Team {
  public:
    using Work = void (*)(const void * context, const Member & me);

    static constexpr int     kMostMembers = 512;
    static constexpr int64_t kNoKind      = -1;  // everybody is called

    // That of the calling thread: made when first used, ended with the thread.
    static Team & of_this_thread();

    Team() = default;
    ~Team();
    Team(const Team &)             = delete;
    Team & operator=(const Team &) = delete;

    // Every member calls work(me), which shares itself out by Pieces; returns when all have left it.
    // At most n_members take part, or fewer: work must do with the caller alone. Calls of the same
    // kind are as much work.
    template <class Function>
    void call(int n_members, bool with_openmp, int64_t kind, const Function & work) {
        const Work run = [](const void * context, const Member & me) {
            (*static_cast<const Function *>(context))(me);
        };
        if (n_members < 2) {
            Member me{*this, 0};
            is_called_off_.store(false, std::memory_order_relaxed);
            run(&work, me);
        } else if (with_openmp) {
            call_openmp(n_members, run, &work);
        } else {
            call_own(n_members, kind, run, &work);
        }
    }

    // Whoever waits for pieces returns, as not all of them will be computed.
    void call_off();
    bool is_called_off() const { return is_called_off_.load(std::memory_order_acquire); }

    // Of all calls of this process to a worker, the share in which it was left out.
    static double share_left_out();

  private:
    friend class Pieces;
    struct Place;

    void call_openmp(int n_members, Work work, const void * context);
    void call_own(int n_members, int64_t kind, Work work, const void * context);
    bool hire(int n_members);
    void attend(Place & place, int index);
    bool enter();
    void leave();
    void wait(const Member & me, const std::atomic<int64_t> & count, int64_t wanted);
    template <class Ready> void wait_until(Ready ready);

    static constexpr int32_t kOpen = 1 << 30;

    alignas(kLine) std::atomic<int32_t> inside_{0};  // workers in a call; kOpen: more may come
    std::atomic<bool> is_called_off_{false};
    alignas(kLine) Signal progress_;  // pieces are computed, or a worker has left
    Work                     work_      = nullptr;
    const void *             context_   = nullptr;
    int                      n_members_ = 0;
    int                      n_hired_   = 0;
    uint32_t                 n_forks_   = 0;
    int64_t                  waited_    = 0;  // by the caller, in this call
    Crew                     crew_;
    std::unique_ptr<Place[]> places_;
};

// Pieces 0 to n - 1 of an operation, handed out in runs that shrink towards the end: long runs keep
// reads in a line, short ones let all members end together.
class Pieces {
  public:
    Pieces(int64_t n, int n_members, int64_t longest = INT64_MAX)
        : n_(n), share_(2 * n_members), longest_(longest) {}

    // The next run, for whoever asks; false: no more.
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

    // n claimed pieces have been computed.
    void finish(const Member & me, int64_t n) {
        if (done_.fetch_add(n, std::memory_order_seq_cst) + n == n_) {
            me.team.progress_.raise();
        }
    }

    // Until all are computed, or the call is called off.
    void wait(const Member & me) const {
        if (done_.load(std::memory_order_acquire) < n_) {
            me.team.wait(me, done_, n_);
        }
    }

    // compute(piece) for all that this member gets, then waits.
    template <class Compute> void run(const Member & me, Compute compute) {
        int64_t first = 0, end = 0;
        while (claim(first, end)) {
            for (int64_t i = first; i < end; i++) {
                compute(i);
            }
            finish(me, end - first);
        }
        wait(me);
    }

  private:
    alignas(kLine) std::atomic<int64_t> next_{0};
    alignas(kLine) std::atomic<int64_t> done_{0};
    alignas(kLine) int64_t n_;
    int64_t share_;
    int64_t longest_;
};

// Memory that only grows, aligned to cache lines. Asked for outside of calls.
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

}  // namespace inferos::kernels
