#include "cpu_features.h"
#include "inferos.h"
#include "kernels/kernels.h"
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <vector>

#include <sys/mman.h>

namespace {

using Clock = std::chrono::steady_clock;

// what the reads add up to goes here, so that no compiler drops them
std::atomic<uint64_t> sink{0};

// What is fetched into the second cache ahead of its use, in words. The first cache keeps track of a
// dozen lines on their way at most: a loop that only loads gets four fifths of what the memory gives.
constexpr size_t kAhead = 8192 / sizeof(uint64_t);
// Words that are read between two checks of the clock.
constexpr size_t kPiece = (size_t{1} << 20) / sizeof(uint64_t);
// The best rate is looked for in windows of this many seconds.
constexpr double kWindow = 0.02;

// Independent sums: the loads are limited by the memory, not by one addition after another.
[[gnu::always_inline]] inline uint64_t sum_all(const uint64_t * data, size_t n) {
    constexpr size_t kSums       = 32;
    uint64_t         sums[kSums] = {};
    for (size_t i = 0; i + kSums <= n; i += kSums) {
        for (size_t line = 0; line < kSums; line += 8) {
            __builtin_prefetch(data + i + line + kAhead, 0, 2);  // beyond the end it does nothing
        }
        for (size_t j = 0; j < kSums; ++j) {
            sums[j] += data[i + j];
        }
    }
    uint64_t total = 0;
    for (const uint64_t sum : sums) {
        total += sum;
    }
    return total;
}

using Read = uint64_t (*)(const uint64_t * data, size_t n);

uint64_t read_anywhere(const uint64_t * data, size_t n) {
    return sum_all(data, n);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] uint64_t read_avx2(const uint64_t * data, size_t n) {
    return sum_all(data, n);
}

[[gnu::target("avx512f")]] uint64_t read_avx512(const uint64_t * data, size_t n) {
    return sum_all(data, n);
}
#else
constexpr Read read_avx2 = read_anywhere, read_avx512 = read_anywhere;
#endif

// The widest loads there are: what lies in a cache is read faster than narrow ones can.
Read widest_read() {
    const inferos::CpuFeatures & cpu = inferos::cpu_features();
    return cpu.avx512f ? read_avx512 : cpu.avx2 ? read_avx2 : read_anywhere;
}

// The largest rate that pass() gives within `seconds`.
template <typename Pass> double best_rate(double seconds, double amount, Pass pass) {
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
template <typename Work> void share(size_t n, int32_t n_threads, Work work) {
    const size_t part = n / static_cast<size_t>(n_threads) / 8 * 8;
    inferos::in_parallel(n_threads,
                         [part, &work](int64_t t) { work(part * static_cast<size_t>(t), part); });
}

struct Piece {
    double end;
    double words;
};

// A thread's reading: when it began, and when it had read how much.
struct Reading {
    double             begin = 0.0;
    std::vector<Piece> pieces;

    double end() const { return pieces.empty() ? begin : pieces.back().end; }

    // Words that were read from one moment to another.
    double between(double from, double to) const {
        double sum = 0.0, start = begin;
        for (const Piece & piece : pieces) {
            const double shared = std::min(piece.end, to) - std::max(start, from);
            if (shared > 0.0) {
                sum += piece.words * shared / std::max(piece.end - start, 1e-9);
            }
            start = piece.end;
        }
        return sum;
    }
};

double now() {
    return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// Reads n words over and over; only what is noted here is timed, and no start of a thread is.
Reading read_for(const uint64_t * data, size_t n, double seconds) {
    Reading found;
    found.pieces.reserve(static_cast<size_t>(seconds * 1e5) + 16);
    const Read read  = widest_read();
    uint64_t   total = 0;
    found.begin      = now();
    while (found.end() - found.begin < seconds) {
        for (size_t first = 0; first < n; first += kPiece) {
            size_t done = 0;
            // a small part is read several times between two checks of the clock
            do {
                total += read(data + first, std::min(kPiece, n - first));
                done += std::min(kPiece, n - first);
            } while (done < kPiece);
            found.pieces.push_back({now(), static_cast<double>(done)});
        }
    }
    sink.fetch_add(total, std::memory_order_relaxed);
    return found;
}

// The most words per second of all threads together, while all of them were reading.
double best_together(const std::vector<Reading> & readings) {
    double from = 0.0, to = 1e300, words = 0.0, first = 1e300, last = 0.0;
    for (const Reading & reading : readings) {
        from  = std::max(from, reading.begin);
        to    = std::min(to, reading.end());
        first = std::min(first, reading.begin);
        last  = std::max(last, reading.end());
        words += reading.between(reading.begin, reading.end());
    }
    // of threads that never read at the same time, or only for a moment: the mean
    double best = words / std::max(last - first, 1e-9);
    for (double at = from; at + kWindow <= to; at += kWindow) {
        double sum = 0.0;
        for (const Reading & reading : readings) {
            sum += reading.between(at, at + kWindow);
        }
        best = std::max(best, sum / kWindow);
    }
    return best;
}

}  // namespace

INFEROS_API int32_t inferos_read_bandwidth(uint64_t n_bytes, int32_t n_threads, double seconds,
                                           double * bytes_per_s) {
    if (n_threads < 1 || n_bytes / 64 < static_cast<uint64_t>(n_threads) ||
        bytes_per_s == nullptr) {
        return INFEROS_BAD_SHAPE;
    }
    void * memory =
        mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return INFEROS_NO_MEMORY;
    }
    madvise(memory, n_bytes, MADV_HUGEPAGE);
    auto *       data    = static_cast<uint64_t *>(memory);
    const size_t n_words = n_bytes / sizeof(uint64_t);
    int32_t      status  = INFEROS_OK;
    try {
        // each thread writes its own part first: its pages then lie in its own socket's memory
        share(n_words, n_threads,
              [data](size_t first, size_t count) { std::fill_n(data + first, count, first | 1); });
        std::vector<Reading> readings(static_cast<size_t>(n_threads));
        const size_t         part = n_words / static_cast<size_t>(n_threads) / 8 * 8;
        share(n_words, n_threads, [&](size_t first, size_t count) {
            readings[first / part] = read_for(data + first, count, seconds);
        });
        *bytes_per_s = best_together(readings) * sizeof(uint64_t);
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
    std::mutex              mutex;
    std::condition_variable changed;
    bool                    over = false;
    // all at once: each waits until no more can be started
    const auto wait = [&](int64_t) noexcept {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&over] { return over; });
    };
    inferos::Threads threads;
    const int64_t    count = threads.start(1, n_threads, wait);
    {
        const std::lock_guard<std::mutex> lock(mutex);
        over = true;
    }
    changed.notify_all();
    return static_cast<int32_t>(count);
}
