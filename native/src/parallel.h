// Where threads of ours begin, but for the kernels' team (kernels/team.cpp). Runs work on several
// threads, whatever the system has left: a thread that cannot be started, for want of memory or of
// threads, leaves its share to the caller's, and what a share throws is thrown again in the caller
// once all threads have ended. A std::thread that is unwound over while it runs, or that lets an
// exception out, would end the process.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace inferos {

// Threads that are joined at the end of their block.
class Threads {
  public:
    Threads()                = default;
    Threads(const Threads &) = delete;
    ~Threads() {
        for (std::thread & thread : threads_) {
            thread.join();
        }
    }

    // Starts run(i), which must throw nothing, for every i from first to end - 1; returns the first
    // that could not be started, or end.
    template <typename Run> int64_t start(int64_t first, int64_t end, const Run & run) {
        try {
            for (; first < end; first++) {
                threads_.emplace_back(run, first);
            }
        } catch (...) {
            // the system gives no more: std::system_error, or std::bad_alloc of the vector or of
            // the thread
        }
        return first;
    }

  private:
    std::vector<std::thread> threads_;
};

// Calls work(i) once for every i of 0 to n - 1, at the same time as far as threads can be had; the
// caller does share 0, then those that nobody took.
template <typename Work> void in_parallel(int64_t n, const Work & work) {
    std::atomic<bool>  failed{false};
    std::exception_ptr thrown;
    const auto         run = [&work, &failed, &thrown](int64_t i) noexcept {
        try {
            work(i);
        } catch (...) {
            if (!failed.exchange(true)) {
                thrown = std::current_exception();
            }
        }
    };
    {
        Threads       threads;
        const int64_t rest = threads.start(1, n, run);
        if (n > 0) {
            run(0);
        }
        for (int64_t i = rest; i < n; i++) {
            run(i);
        }
    }
    if (failed) {
        std::rethrow_exception(thrown);
    }
}

}  // namespace inferos
