#include "inferos.h"

#include <atomic>
#include <csignal>

namespace {

// lock-free, so it may be written from a signal handler
std::atomic<int32_t> interrupt_flag{0};

constexpr int    kEndingSignals[]            = {SIGINT, SIGTERM, SIGHUP};
constexpr size_t n_signals                   = sizeof(kEndingSignals) / sizeof(kEndingSignals[0]);
struct sigaction previous_actions[n_signals] = {};
bool             installed[n_signals]        = {};

void on_interrupt(int signal_number, siginfo_t * info, void * context) {
    interrupt_flag.store(1, std::memory_order_relaxed);
    for (size_t i = 0; i < n_signals; ++i) {
        const struct sigaction & previous = previous_actions[i];
        if (kEndingSignals[i] != signal_number) {
            continue;
        }
        if (previous.sa_flags & SA_SIGINFO) {
            previous.sa_sigaction(signal_number, info, context);
        } else if (previous.sa_handler != SIG_IGN && previous.sa_handler != SIG_DFL) {
            previous.sa_handler(signal_number);
        }
    }
}

// a process that was started to ignore a signal goes on ignoring it, and one that SIGTERM or
// SIGHUP ends at once needs no flag
bool is_left_alone(const struct sigaction & action, int signal_number) {
    if (action.sa_flags & SA_SIGINFO) {
        return false;
    }
    return action.sa_handler == SIG_IGN ||
           (action.sa_handler == SIG_DFL && signal_number != SIGINT);
}

}  // namespace

INFEROS_API int32_t inferos_interrupt_install(void) {
    for (size_t i = 0; i < n_signals; ++i) {
        if (installed[i]) {
            continue;
        }
        struct sigaction action = {};
        action.sa_sigaction     = on_interrupt;
        action.sa_flags         = SA_SIGINFO;
        sigemptyset(&action.sa_mask);
        if (sigaction(kEndingSignals[i], nullptr, &previous_actions[i]) != 0) {
            return -1;
        }
        if (is_left_alone(previous_actions[i], kEndingSignals[i])) {
            continue;
        }
        if (sigaction(kEndingSignals[i], &action, &previous_actions[i]) != 0) {
            return -1;
        }
        installed[i] = true;
    }
    return 0;
}

INFEROS_API int32_t inferos_interrupt_restore(void) {
    int32_t result = 0;
    for (size_t i = 0; i < n_signals; ++i) {
        if (installed[i]) {
            installed[i] = false;
            result |= sigaction(kEndingSignals[i], &previous_actions[i], nullptr);
        }
    }
    return result;
}

INFEROS_API void inferos_interrupt_set(int32_t value) {
    interrupt_flag.store(value, std::memory_order_relaxed);
}

INFEROS_API bool inferos_interrupt_requested(void * /*unused*/) {
    return interrupt_flag.load(std::memory_order_relaxed) != 0;
}
