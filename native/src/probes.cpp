#include "inferos.h"
#include "kernels/kernels.h"
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/mman.h>

namespace {

using Clock = std::chrono::steady_clock;

// what the reads add up to goes here, so that no compiler drops them
std::atomic<uint64_t> sink{0};

// Eight independent sums: the loads are limited by the memory, not by one addition after another.
uint64_t read_all(const uint64_t * data, size_t n) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i + 8 <= n; i += 8) {
        for (size_t j = 0; j < 8; ++j) {
            sums[j] += data[i + j];
        }
    }
    uint64_t total = 0;
    for (const uint64_t sum : sums) {
        total += sum;
    }
    return total;
}

// The largest rate that pass() gives in so many seconds.
template <typename Pass>
double best_rate(double seconds, double amount, Pass pass) {
    double     best = 0.0;
    const auto end  = Clock::now() + std::chrono::duration<double>(seconds);
    do {
        const auto started = Clock::now();
        pass();
        const std::chrono::duration<double> took = Clock::now() - started;
        best = std::max(best, amount / std::max(took.count(), 1e-9));
    } while (Clock::now() < end);
    return best;
}

// Runs work(first, count) on every thread's share of n words; where there are fewer threads than
// that, the rate says so.
template <typename Work>
void share(size_t n, int32_t n_threads, Work work) {
    const size_t part = n / static_cast<size_t>(n_threads) / 8 * 8;
    inferos::in_parallel(n_threads, [part, &work](int64_t t) {
        work(part * static_cast<size_t>(t), part);
    });
}

}  // namespace

INFEROS_API int32_t inferos_read_bandwidth(uint64_t n_bytes, int32_t n_threads, double seconds,
                                           double * bytes_per_s) {
    if (n_threads < 1 || n_bytes / 64 < static_cast<uint64_t>(n_threads) || bytes_per_s == nullptr) {
        return INFEROS_BAD_SHAPE;
    }
    void * memory = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return INFEROS_NO_MEMORY;
    }
    madvise(memory, n_bytes, MADV_HUGEPAGE);
    auto *       data    = static_cast<uint64_t *>(memory);
    const size_t n_words = n_bytes / sizeof(uint64_t);
    const size_t read    = n_words / static_cast<size_t>(n_threads) / 8 * 8 *
                        static_cast<size_t>(n_threads) * sizeof(uint64_t);
    int32_t status = INFEROS_OK;
    try {
        // each thread writes its own part first: its pages then lie in its own socket's memory
        share(n_words, n_threads, [data](size_t first, size_t count) {
            std::fill_n(data + first, count, first | 1);
        });
        *bytes_per_s = best_rate(seconds, static_cast<double>(read), [&] {
            share(n_words, n_threads, [data](size_t first, size_t count) {
                sink.fetch_add(read_all(data + first, count), std::memory_order_relaxed);
            });
        });
    } catch (const std::exception &) {
        status = INFEROS_NO_MEMORY;
    }
    munmap(memory, n_bytes);
    return status;
}

INFEROS_API int32_t inferos_multiply_rate(int32_t n_threads, double seconds, int32_t scaled,
                                          double * per_s) {
    // long enough that starting a thread does not count, short against a turn of the scheduler
    constexpr int64_t kRounds = 1 << 19;
    const auto *      variant = inferos::kernels::best_variant();
    if (variant == nullptr) {
        return INFEROS_NO_KERNEL;
    }
    if (n_threads < 1 || per_s == nullptr) {
        return INFEROS_BAD_SHAPE;
    }
    const auto & probe  = scaled != 0 ? variant->blocks : variant->multiply;
    const auto   n      = static_cast<size_t>(n_threads);
    const double amount = static_cast<double>(n_threads) * static_cast<double>(kRounds) *
                          static_cast<double>(probe.multiplied);
    try {
        *per_s = best_rate(seconds, amount, [&] {
            share(8 * n, n_threads, [&probe](size_t, size_t) {
                sink.fetch_add(static_cast<uint64_t>(probe.run(kRounds)),
                               std::memory_order_relaxed);
            });
        });
    } catch (const std::exception &) {
        return INFEROS_NO_MEMORY;
    }
    return INFEROS_OK;
}

INFEROS_API int32_t inferos_possible_threads(int32_t n_threads) {
    std::mutex               mutex;
    std::condition_variable  changed;
    bool                     over  = false;
    int32_t                  count = 1;
    std::vector<std::thread> threads;
    try {
        threads.reserve(static_cast<size_t>(std::max(n_threads, 1)));
        for (; count < n_threads; count++) {
            threads.emplace_back([&] {
                std::unique_lock<std::mutex> lock(mutex);
                changed.wait(lock, [&over] { return over; });
            });
        }
    } catch (const std::exception &) {
        // no more to be had
    }
    {
        const std::lock_guard<std::mutex> lock(mutex);
        over = true;
    }
    changed.notify_all();
    for (std::thread & thread : threads) {
        thread.join();
    }
    return count;
}
