#include "inferos.h"

#include <atomic>
#include <csignal>

namespace {

// lock-free, so it may be written from a signal handler
std::atomic<int32_t> interrupt_flag{0};
struct sigaction     previous_action = {};
bool                 installed       = false;

void on_interrupt(int signal_number, siginfo_t * info, void * context) {
    interrupt_flag.store(1, std::memory_order_relaxed);
    if (previous_action.sa_flags & SA_SIGINFO) {
        previous_action.sa_sigaction(signal_number, info, context);
    } else if (previous_action.sa_handler != SIG_IGN && previous_action.sa_handler != SIG_DFL) {
        previous_action.sa_handler(signal_number);
    }
}

}  // namespace

INFEROS_API int32_t inferos_interrupt_install(void) {
    if (installed) {
        return 0;
    }
    struct sigaction action = {};
    action.sa_sigaction = on_interrupt;
    action.sa_flags     = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGINT, nullptr, &previous_action) != 0) {
        return -1;
    }
    // a process that was started to ignore SIGINT goes on ignoring it
    if (!(previous_action.sa_flags & SA_SIGINFO) && previous_action.sa_handler == SIG_IGN) {
        return 0;
    }
    if (sigaction(SIGINT, &action, &previous_action) != 0) {
        return -1;
    }
    installed = true;
    return 0;
}

INFEROS_API int32_t inferos_interrupt_restore(void) {
    if (!installed) {
        return 0;
    }
    installed = false;
    return sigaction(SIGINT, &previous_action, nullptr);
}

INFEROS_API void inferos_interrupt_set(int32_t value) {
    interrupt_flag.store(value, std::memory_order_relaxed);
}

INFEROS_API bool inferos_interrupt_requested(void * /*unused*/) {
    return interrupt_flag.load(std::memory_order_relaxed) != 0;
}
