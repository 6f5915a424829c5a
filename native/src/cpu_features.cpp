#include "cpu_features.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <cstddef>

#include <sys/sysctl.h>
#endif

namespace inferos {
namespace {

#if defined(__x86_64__) || defined(__i386__)

bool bit(unsigned value, int n) {
    return (value >> n & 1) != 0;
}

// Intel's manual, volume 2, CPUID; volume 1, chapter 14 and 15, on what the system must save.
// __builtin_cpu_supports would do, but not every compiler's knows f16c and avxvnni.
CpuFeatures read_features() {
    CpuFeatures found;
    unsigned    a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !bit(c, 27) || !bit(c, 28)) {  // OSXSAVE, AVX
        return found;
    }
    unsigned low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool ymm = (low & 0x06) == 0x06;
    const bool zmm = (low & 0xe6) == 0xe6;
    found.fma      = ymm && bit(c, 12);
    found.f16c     = ymm && bit(c, 29);
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
        return found;
    }
    found.avx2       = ymm && bit(b, 5);
    found.avx512f    = zmm && bit(b, 16);
    found.avx512dq   = zmm && bit(b, 17);
    found.avx512bw   = zmm && bit(b, 30);
    found.avx512vl   = zmm && bit(b, 31);
    found.avx512vnni = zmm && bit(c, 11);
    found.avx512vbmi = zmm && bit(c, 1);
    const bool tiles = (low & 0x60000) == 0x60000;
    found.amx_tile   = tiles && bit(d, 24);
    found.amx_int8   = tiles && bit(d, 25);
    unsigned eax     = 0;
    if (a >= 1 && __get_cpuid_count(7, 1, &eax, &b, &c, &d) != 0) {
        found.avxvnni = ymm && bit(eax, 4);
    }
    return found;
}

#elif defined(__aarch64__)

// Linux: Documentation/arch/arm64/elf_hwcaps.rst; macOS: "Determining instruction set
// characteristics" in Apple's documentation of sysctlbyname.
CpuFeatures read_features() {
    CpuFeatures found;
#if defined(__linux__)
    found.dot_products = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    int    has  = 0;
    size_t size = sizeof(has);
    found.dot_products =
        sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#endif
    return found;
}

#else

CpuFeatures read_features() {
    return {};
}

#endif

}  // namespace

const CpuFeatures & cpu_features() {
    static const CpuFeatures found = read_features();
    return found;
}

// Linux: Documentation/arch/x86/xstate.rst; 18 is the tiles' data.
bool ask_for_tiles() {
#if defined(__x86_64__) && defined(__linux__)
    constexpr long kAskForState = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace inferos
