// Which of the compiled variants this CPU, and its operating system, can run.
#include <atomic>
#include <cstring>

#include "cpu_features.h"
#include "inferos.h"
#include "kernels.h"

namespace inferos::kernels {
namespace {

std::atomic<const Variant *> chosen{nullptr};

#if defined(__x86_64__)

// The best first.
const Variant * runnable(int n) {
    const CpuFeatures & has  = cpu_features();
    const bool          avx2 = has.avx2 && has.fma && has.f16c;
    const bool vnni = avx2 && has.avx512f && has.avx512bw && has.avx512vl && has.avx512vnni;
    switch (n) {
        case 0: return vnni && has.avx512vbmi ? variant_avx512vbmi() : nullptr;
        case 1: return vnni ? variant_avx512vnni() : nullptr;
        case 2: return avx2 && has.avxvnni ? variant_avxvnni() : nullptr;
        case 3: return avx2 ? variant_avx2() : nullptr;
        default: return nullptr;
    }
}

constexpr int  kVariants = 4;
constexpr auto kNeeded   = "this CPU has no AVX2 with FMA and F16C";

#elif defined(__aarch64__)

const Variant * runnable(int) {
    return cpu_features().dot_products ? variant_neon() : nullptr;
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

#if defined(__x86_64__)

bool has_amx() {
    const CpuFeatures & has = cpu_features();
    return has.amx_tile && has.amx_int8 && runnable(1) != nullptr && variant_amx() != nullptr;
}

#else

bool has_amx() {
    return false;
}

#endif

const Variant * best_variant() {
    if (const Variant * variant = chosen.load(std::memory_order_relaxed)) {
        return variant;
    }
    for (int i = 0; i < kVariants; i++) {
        if (const Variant * variant = runnable(i)) {
            return variant;
        }
    }
    return nullptr;
}

void choose_variant(const Variant & variant) {
    chosen.store(&variant, std::memory_order_relaxed);
}

const Variant * variant_named(const char * name) {
#if defined(__x86_64__)
    if (std::strcmp(name, "amx") == 0) {
        static const bool may = has_amx() && ask_for_tiles();  // of the process, once
        return may ? variant_amx() : nullptr;
    }
    if (std::strcmp(name, "amx-emulated") == 0) {
        return runnable(1) != nullptr ? variant_amx_emulated() : nullptr;
    }
#endif
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

const FloatType * find_float_type(const Variant & variant, int32_t type) {
    for (int32_t i = 0; i < variant.n_float_types; i++) {
        if (variant.float_types[i].type == type) {
            return &variant.float_types[i];
        }
    }
    return nullptr;
}

const char * missing_features() {
    return best_variant() != nullptr ? "" : kNeeded;
}

}  // namespace inferos::kernels

INFEROS_API const char * inferos_kernels_name(void) {
    const auto * variant = inferos::kernels::best_variant();
    return variant != nullptr ? variant->name : "";
}

INFEROS_API int32_t inferos_has_amx(void) {
    return inferos::kernels::has_amx();
}

INFEROS_API int32_t inferos_kernels_choose(const char * name) {
    const auto * variant = inferos::kernels::variant_named(name);
    if (variant == nullptr) {
        return INFEROS_NO_KERNEL;
    }
    inferos::kernels::choose_variant(*variant);
    return INFEROS_OK;
}
