// Which of the compiled variants this CPU, and its operating system, can run.
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace inferos::kernels {
namespace {

#if defined(__x86_64__)

struct Features {
    bool avx2       = false;  // with FMA and F16C
    bool avxvnni    = false;
    bool avx512vnni = false;  // with F, BW, VL
};

bool bit(unsigned value, int n) {
    return (value >> n & 1) != 0;
}

// Intel's manual, volume 2, CPUID; volume 1, chapter 14 and 15, on what the system must save.
Features read_features() {
    Features found;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !bit(c, 27)) {  // OSXSAVE
        return found;
    }
    const bool avx = bit(c, 28) && bit(c, 12) && bit(c, 29);  // AVX, FMA, F16C
    unsigned   low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool ymm = (low & 0x06) == 0x06;
    const bool zmm = (low & 0xe6) == 0xe6;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
        return found;
    }
    found.avx2       = avx && ymm && bit(b, 5);
    found.avx512vnni = found.avx2 && zmm && bit(b, 16) && bit(b, 30) && bit(b, 31) && bit(c, 11);
    unsigned eax     = 0;
    if (a >= 1 && __get_cpuid_count(7, 1, &eax, &b, &c, &d) != 0) {
        found.avxvnni = found.avx2 && bit(eax, 4);
    }
    return found;
}

const Features & features() {
    static const Features found = read_features();
    return found;
}

// The best first.
const Variant * runnable(int n) {
    const Features & has = features();
    switch (n) {
        case 0: return has.avx512vnni ? variant_avx512vnni() : nullptr;
        case 1: return has.avxvnni ? variant_avxvnni() : nullptr;
        case 2: return has.avx2 ? variant_avx2() : nullptr;
        default: return nullptr;
    }
}

constexpr int  kVariants = 3;
constexpr auto kNeeded   = "this CPU has no AVX2 with FMA and F16C";

#elif defined(__aarch64__)

// Linux: Documentation/arch/arm64/elf_hwcaps.rst; macOS: "Determining instruction set
// characteristics" in Apple's documentation of sysctlbyname.
bool read_dot_products() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    int    has  = 0;
    size_t size = sizeof(has);
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
    return false;
#endif
}

const Variant * runnable(int) {
    static const bool has_dot_products = read_dot_products();
    return has_dot_products ? variant_neon() : nullptr;
}

constexpr int  kVariants = 1;
constexpr auto kNeeded   = "this CPU has no dot products of bytes (FEAT_DotProd of ARMv8.2)";

#else

const Variant * runnable(int) {
    return nullptr;
}

constexpr int  kVariants = 0;
constexpr auto kNeeded   = "there are no kernels for this kind of CPU";

#endif

}  // namespace

const Variant * best_variant() {
    for (int i = 0; i < kVariants; i++) {
        if (const Variant * variant = runnable(i)) {
            return variant;
        }
    }
    return nullptr;
}

const Variant * variant_named(const char * name) {
    for (int i = 0; i < kVariants; i++) {
        const Variant * variant = runnable(i);
        if (variant != nullptr && std::strcmp(variant->name, name) == 0) {
            return variant;
        }
    }
    return nullptr;
}

const WeightType * find_type(const Variant & variant, int32_t type) {
    for (int32_t i = 0; i < variant.n_types; i++) {
        if (variant.types[i].type == type) {
            return &variant.types[i];
        }
    }
    return nullptr;
}

const char * missing_features() {
    return best_variant() != nullptr ? "" : kNeeded;
}

}  // namespace inferos::kernels
