// An operator new that fails from a chosen call on, to be preloaded: see test_threads.py.
#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<long> left{-1};  // negative: never fails
}

extern "C" __attribute__((visibility("default"))) void fail_after(long n) {
    left = n;
}

__attribute__((visibility("default"))) void * operator new(std::size_t size) {
    if (left >= 0 && left.fetch_sub(1) <= 0) {
        left = 0;  // until it is told otherwise
        throw std::bad_alloc();
    }
    void * memory = std::malloc(size ? size : 1);
    if (!memory) {
        throw std::bad_alloc();
    }
    return memory;
}
__attribute__((visibility("default"))) void * operator new[](std::size_t size) {
    return operator new(size);
}
__attribute__((visibility("default"))) void operator delete(void * memory) noexcept {
    std::free(memory);
}
__attribute__((visibility("default"))) void operator delete[](void * memory) noexcept {
    std::free(memory);
}
__attribute__((visibility("default"))) void operator delete(void * memory, std::size_t) noexcept {
    std::free(memory);
}
__attribute__((visibility("default"))) void operator delete[](void * memory, std::size_t) noexcept {
    std::free(memory);
}
