// Files that are mapped may shrink, or their disk may fail, while they are read: the kernel then
// sends SIGBUS to the thread that reads. For files that are watched, the handler puts pages of
// zeros in the place of what is gone and marks the watch, so that the reader goes on and whoever
// asked for the read learns that its result is worth nothing. Any other SIGBUS goes to the handler
// that was there before.
#include "inferos.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

constexpr int32_t kMostWatches = 256;
constexpr int32_t kMostPatches = 64;

// The file behind a mapping, as /proc/self/maps names it: on some file systems another device than
// that of fstat.
struct FileId {
    uint64_t device = 0;
    uint64_t inode  = 0;
    bool operator==(const FileId & other) const {
        return device == other.device && inode == other.inode;
    }
};

struct Watch {
    std::atomic<int32_t> active{0};   // 0 free, 1 being made, 2 in use
    std::atomic<int32_t> damaged{0};  // pages of it were replaced
    FileId               file;
};

struct Mapping {
    uintptr_t start = 0, end = 0;
    FileId    file;
    bool      writable = false;
};

// What zeros were put over: a thread that faulted there at the same time only has to try again.
struct Patch {
    uintptr_t start, end;
};

Watch            watches[kMostWatches];
Patch            patches[kMostPatches];
size_t           n_patches       = 0;  // ever made; the last kMostPatches are known
std::atomic_flag patching        = ATOMIC_FLAG_INIT;
struct sigaction previous_action = {};

// Reads /proc/self/maps with nothing but system calls and its own stack: a handler may do no more.
class MapsReader {
  public:
    MapsReader() : file_(open("/proc/self/maps", O_RDONLY | O_CLOEXEC)) {}
    ~MapsReader() {
        if (file_ >= 0) {
            close(file_);
        }
    }
    MapsReader(const MapsReader &)             = delete;
    MapsReader & operator=(const MapsReader &) = delete;

    // start-end perms offset major:minor inode [path], in hexadecimal but for the inode
    bool next(Mapping & mapping) {
        uint64_t start, end, unused, major, minor, inode;
        if (!number(16, '-', start) || !number(16, ' ', end)) {
            return false;
        }
        mapping.writable = false;
        for (int c = get(); c != ' '; c = get()) {
            if (c < 0) {
                return false;
            }
            mapping.writable = mapping.writable || c == 'w';
        }
        if (!number(16, ' ', unused) || !number(16, ':', major) || !number(16, ' ', minor) ||
            !number(10, ' ', inode)) {
            return false;
        }
        for (int c = last_; c != '\n'; c = get()) {
            if (c < 0) {
                return false;
            }
        }
        mapping.start = static_cast<uintptr_t>(start);
        mapping.end   = static_cast<uintptr_t>(end);
        mapping.file  = {major << 32 | minor, inode};
        return true;
    }

  private:
    int get() {
        if (at_ == size_) {
            ssize_t n;
            do {
                n = file_ < 0 ? 0 : read(file_, buffer_, sizeof buffer_);
            } while (n < 0 && errno == EINTR);
            if (n <= 0) {
                return last_ = -1;
            }
            at_   = 0;
            size_ = static_cast<size_t>(n);
        }
        return last_ = static_cast<unsigned char>(buffer_[at_++]);
    }

    // Digits up to a character; the end of the line, too, ends the inode of what has no path.
    bool number(uint64_t base, char end, uint64_t & value) {
        value = 0;
        int c = get();
        for (; c >= 0 && c != end && c != '\n'; c = get()) {
            const uint64_t digit = c <= '9' ? c - '0' : c - 'a' + 10;
            value                = value * base + digit;
        }
        return c == end || (c == '\n' && base == 10);
    }

    int    file_;
    char   buffer_[1024];
    size_t at_ = 0, size_ = 0;
    int    last_ = -1;
};

bool find_mapping(uintptr_t address, Mapping & mapping) {
    MapsReader maps;
    while (maps.next(mapping)) {
        if (address >= mapping.start && address < mapping.end) {
            return true;
        }
    }
    return false;
}

bool was_patched(uintptr_t address) {
    const size_t n = n_patches < kMostPatches ? n_patches : kMostPatches;
    for (size_t i = 0; i < n; i++) {
        if (address >= patches[i].start && address < patches[i].end) {
            return true;
        }
    }
    return false;
}

bool mark_watches(const FileId & file) {
    bool found = false;
    for (Watch & watch : watches) {
        if (watch.active.load(std::memory_order_acquire) == 2 && watch.file == file) {
            watch.damaged.store(1, std::memory_order_release);
            found = true;
        }
    }
    return found;
}

// Whether the read may go on. Everything behind the page is gone as well, where a file has shrunk,
// and a failing disk leaves nothing to rely on: so that there is one fault, and not one a page.
bool patch(uintptr_t address) {
    Mapping mapping;
    if (!find_mapping(address, mapping)) {
        return false;
    }
    if (mapping.file.inode == 0) {
        return was_patched(address);
    }
    if (mapping.writable || !mark_watches(mapping.file)) {
        return false;
    }
    const auto page  = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto start = address / page * page;
    void *     zeros = mmap(reinterpret_cast<void *>(start), mapping.end - start, PROT_READ,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (zeros == MAP_FAILED) {
        return false;
    }
    patches[n_patches++ % kMostPatches] = {start, mapping.end};
    return true;
}

void pass_on(int signal_number, siginfo_t * info, void * context) {
    if (previous_action.sa_flags & SA_SIGINFO) {
        previous_action.sa_sigaction(signal_number, info, context);
    } else if (previous_action.sa_handler == SIG_DFL ||
               (previous_action.sa_handler == SIG_IGN && info->si_code > 0)) {
        // ends the process as if there had been no handler: by the same fault again, or by raise
        signal(signal_number, SIG_DFL);
        if (info->si_code <= 0) {
            raise(signal_number);
        }
    } else if (previous_action.sa_handler != SIG_IGN) {
        previous_action.sa_handler(signal_number);
    }
}

void on_bus_error(int signal_number, siginfo_t * info, void * context) {
    const int error = errno;
    bool      done  = false;
    if (info->si_code == BUS_ADRERR) {
        // several threads read the same weights; no handler waits for anything but another one
        while (patching.test_and_set(std::memory_order_acquire)) {
        }
        done = patch(reinterpret_cast<uintptr_t>(info->si_addr));
        patching.clear(std::memory_order_release);
    }
    errno = error;
    if (!done) {
        pass_on(signal_number, info, context);
    }
}

// Once for the process: a handler that came later may pass on to this one.
bool install() {
    static const bool good = [] {
        struct sigaction action = {};
        action.sa_sigaction     = on_bus_error;
        action.sa_flags         = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        return sigaction(SIGBUS, nullptr, &previous_action) == 0 &&
               sigaction(SIGBUS, &action, nullptr) == 0;
    }();
    return good;
}

// How /proc/self/maps names an open file: seen on a page of it that is mapped for that.
bool identify(int file, FileId & id) {
    const auto page   = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void *     mapped = mmap(nullptr, page, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        return false;
    }
    Mapping    mapping;
    const bool found = find_mapping(reinterpret_cast<uintptr_t>(mapped), mapping);
    munmap(mapped, page);
    id = mapping.file;
    return found && id.inode != 0;
}

}  // namespace

INFEROS_API int32_t inferos_guard_watch(int32_t file) {
    FileId id;
    if (!install() || !identify(file, id)) {
        return -1;
    }
    for (int32_t i = 0; i < kMostWatches; i++) {
        int32_t free = 0;
        if (watches[i].active.compare_exchange_strong(free, 1)) {
            watches[i].file = id;
            watches[i].damaged.store(0, std::memory_order_relaxed);
            watches[i].active.store(2, std::memory_order_release);
            return i;
        }
    }
    return -1;
}

INFEROS_API const int32_t * inferos_guard_damaged(int32_t watch) {
    static_assert(sizeof(std::atomic<int32_t>) == sizeof(int32_t), "read by Python as it is");
    return reinterpret_cast<const int32_t *>(&watches[watch].damaged);
}

INFEROS_API void inferos_guard_release(int32_t watch) {
    watches[watch].active.store(0, std::memory_order_release);
}
