#include "team.h"

#include <chrono>
#include <csignal>
#include <system_error>

#include <pthread.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

namespace inferos::kernels {
namespace {

constexpr int64_t kMicrosecond = 1000;
// How long a thread looks for work, or for pieces, before it sleeps: waking one takes about as long.
constexpr int64_t kSpin = 50 * kMicrosecond;

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// How often the calling thread had to leave its core to others; 0 where the system does not tell.
int64_t times_preempted() {
#ifdef RUSAGE_THREAD
    rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
#else
    return 0;
#endif
}

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Whether ready() within about a microsecond.
template <class Ready> bool is_soon(Ready ready) {
    for (int i = 0; i < 32; i++) {
        if (ready()) {
            return true;
        }
        relax();
    }
    return false;
}

// Until ready() or the time is over; returns ready().
template <class Ready> bool spin(Ready ready) {
    if (is_soon(ready)) {
        return true;
    }
    const int64_t end = now_ns() + kSpin;
    do {
        if (is_soon(ready)) {
            return true;
        }
    } while (now_ns() < end);
    return false;
}

// Calls to workers, and those in which one was left out, in this process.
std::atomic<int64_t> n_calls{0}, n_left_out{0};

// Children of fork() have no threads but the one that called it.
std::atomic<uint32_t> n_forks{0};

void count_forks() {
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { n_forks.fetch_add(1, std::memory_order_relaxed); });
    (void)registered;
}

// Signals go to threads that have asked for them; faults stay with the thread that has them.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) {
            sigdelset(&all, fault);
        }
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
};

}  // namespace

// ---- sleeping

#ifdef __linux__

void Signal::raise() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (n_asleep_.load(std::memory_order_seq_cst) > 0) {
        syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
    }
}

void Signal::sleep(uint32_t seen) {
    n_asleep_.fetch_add(1, std::memory_order_seq_cst);
    // returns at once if the value has changed
    syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    n_asleep_.fetch_sub(1, std::memory_order_seq_cst);
}

#else

namespace {
std::mutex              sleeping;
std::condition_variable woken;
}  // namespace

void Signal::raise() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (n_asleep_.load(std::memory_order_seq_cst) > 0) {
        std::lock_guard<std::mutex> lock(sleeping);
        woken.notify_all();
    }
}

void Signal::sleep(uint32_t seen) {
    std::unique_lock<std::mutex> lock(sleeping);
    n_asleep_.fetch_add(1, std::memory_order_seq_cst);
    woken.wait(lock, [&] { return value() != seen; });
    n_asleep_.fetch_sub(1, std::memory_order_seq_cst);
}

#endif

// ---- the threads

struct Team::Place {
    alignas(kLine) Signal call;
    alignas(kLine) std::atomic<bool> is_over{false};
    std::thread thread;
};

Team & Team::of_this_thread() {
    thread_local Team team;
    return team;
}

Team::~Team() {
    if (places_ == nullptr) {
        return;
    }
    if (n_forks_ != n_forks.load(std::memory_order_relaxed)) {
        places_.release();  // its threads are the parent's; nothing here can end them
        return;
    }
    for (int i = 1; i <= n_hired_; i++) {
        places_[i].is_over.store(true, std::memory_order_release);
        places_[i].call.raise();
        places_[i].thread.join();
    }
}

// Threads for this many members, the caller included; false: there are none.
bool Team::hire(int n_members) {
    count_forks();
    const uint32_t forks = n_forks.load(std::memory_order_relaxed);
    if (places_ != nullptr && n_forks_ != forks) {
        places_.release();
        n_hired_ = 0;
        inside_.store(0, std::memory_order_relaxed);
    }
    n_forks_ = forks;
    if (places_ == nullptr) {
        places_.reset(new (std::nothrow) Place[kMostMembers]);
        if (places_ == nullptr) {
            return false;
        }
    }
    if (n_hired_ + 1 < n_members) {
        const SignalsBlocked blocked;
        try {
            while (n_hired_ + 1 < n_members && n_hired_ + 1 < kMostMembers) {
                Place & place = places_[n_hired_ + 1];
                place.thread =
                    std::thread([this, &place, index = n_hired_ + 1] { attend(place, index); });
                n_hired_++;
            }
        } catch (const std::system_error &) {
            // the system allows no more threads
        }
    }
    return n_hired_ > 0;
}

void Team::attend(Place & place, int index) {
    uint32_t seen = 0;
    for (;;) {
        const auto called = [&] { return place.call.value() != seen; };
        if (!spin(called)) {
            place.call.sleep_until(called);
        }
        seen = place.call.value();
        if (place.is_over.load(std::memory_order_acquire)) {
            return;
        }
        if (enter()) {
            // whoever comes late for one call may find the next one, which may have fewer members
            if (index < n_members_) {
                Member me{*this, index};
                work_(context_, me);
            }
            leave();
        }
    }
}

bool Team::enter() {
    int32_t inside = inside_.load(std::memory_order_acquire);
    while ((inside & kOpen) != 0) {
        if (inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) {
            return true;
        }
    }
    return false;
}

void Team::leave() {
    if (inside_.fetch_sub(1, std::memory_order_seq_cst) == 1) {
        progress_.raise();  // the caller waits for the last one
    }
}

void Team::call_own(int n_members, int64_t kind, Work work, const void * context) {
    is_called_off_.store(false, std::memory_order_relaxed);
    Member me{*this, 0};
    if (!hire(n_members)) {
        work(context, me);
        return;
    }
    const int64_t start  = now_ns();
    const int     n_most = n_members < n_hired_ + 1 ? n_members : n_hired_ + 1;
    const int     size   = kind == kNoKind ? n_most : crew_.size(start, n_most);
    work_                = work;
    context_             = context;
    n_members_           = size;
    waited_              = 0;
    inside_.store(kOpen, std::memory_order_release);
    for (int i = 1; i < size; i++) {
        places_[i].call.raise();
    }
    work(context, me);
    inside_.fetch_and(~kOpen, std::memory_order_seq_cst);
    wait_until([&] { return inside_.load(std::memory_order_acquire) == 0; });
    n_calls.fetch_add(n_most - 1, std::memory_order_relaxed);
    n_left_out.fetch_add(n_most - size, std::memory_order_relaxed);
    if (kind != kNoKind && !is_called_off()) {
        const int64_t end = now_ns();
        crew_.note(end, kind, end - start, waited_, times_preempted);
    }
}

void Team::call_openmp(int n_members, Work work, const void * context) {
    is_called_off_.store(false, std::memory_order_relaxed);
#ifdef _OPENMP
#pragma omp parallel num_threads(n_members)
    {
        Member me{*this, omp_get_thread_num()};
        work(context, me);
    }
#else
    Member me{*this, 0};
    work(context, me);
#endif
}

double Team::share_left_out() {
    const int64_t calls = n_calls.load(std::memory_order_relaxed);
    return calls == 0 ? 0.0
                      : static_cast<double>(n_left_out.load(std::memory_order_relaxed)) /
                            static_cast<double>(calls);
}

void Team::call_off() {
    is_called_off_.store(true, std::memory_order_seq_cst);
    progress_.raise();
}

void Team::wait(const Member & me, const std::atomic<int64_t> & count, int64_t wanted) {
    const auto ready = [&] {
        return count.load(std::memory_order_acquire) >= wanted || is_called_off();
    };
    if (me.index == 0 && places_ != nullptr) {
        wait_until(ready);
    } else if (!spin(ready)) {
        progress_.sleep_until(ready);
    }
}

// The caller waits, and notes how long. A microsecond is not worth noting.
template <class Ready> void Team::wait_until(Ready ready) {
    if (is_soon(ready)) {
        return;
    }
    const int64_t start = now_ns();
    if (!spin(ready)) {
        progress_.sleep_until(ready);
    }
    waited_ += now_ns() - start;
}

}  // namespace inferos::kernels
