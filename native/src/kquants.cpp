// Which compilation of the K-quant kernels serves this CPU, and whether the loaded ggml agrees.
#include "kquants.h"

#include <vector>

#include "cpu_features.h"
#include "ggml.h"
#include "inferos.h"

namespace {

#if defined(__x86_64__) || defined(__i386__)
bool has(int32_t kernel) {
    const inferos::CpuFeatures & cpu = inferos::cpu_features();
    switch (kernel) {
        case INFEROS_KERNEL_BASELINE: return true;
        case INFEROS_KERNEL_AVX2: return cpu.avx2;
        // what CMakeLists.txt compiles the file for
        case INFEROS_KERNEL_AVX512:
            return cpu.avx512f && cpu.avx512bw && cpu.avx512dq && cpu.avx512vl;
        default: return false;
    }
}

KquantFunction function_of(int32_t kernel) {
    return !has(kernel)                        ? nullptr
           : kernel == INFEROS_KERNEL_BASELINE ? kquants_baseline
           : kernel == INFEROS_KERNEL_AVX2     ? kquants_avx2
                                               : kquants_avx512;
}
#else
KquantFunction function_of(int32_t kernel) {
    return kernel == INFEROS_KERNEL_BASELINE ? kquants_baseline : nullptr;
}
#endif

int32_t widest() {
    int32_t kernel = INFEROS_KERNEL_AVX512;
    while (!function_of(kernel)) {
        kernel--;
    }
    return kernel;
}

// Values like those of weights, the same at each call: sums of four uniform draws.
std::vector<float> trial_values(int64_t n) {
    std::vector<float> values(n);
    uint32_t           state = 1;
    for (float & value : values) {
        value = 0;
        for (int draw = 0; draw < 4; draw++) {
            state = state * 1664525u + 1013904223u;
            value += float(state >> 8) * 0x1p-24f - 0.5f;
        }
    }
    return values;
}

bool agrees(ggml_type type, const std::vector<float> & x) {
    const int64_t        n_blocks = int64_t(x.size()) / kSuperBlock;
    std::vector<uint8_t> ours(ggml_row_size(type, int64_t(x.size()))), theirs(ours.size());
    function_of(widest())({x.data(), ours.data(), nullptr, n_blocks, 1, kquant_bits(type)});
    ggml_quantize_chunk(type, x.data(), theirs.data(), 0, n_blocks, kSuperBlock, nullptr);
    return ours == theirs;
}

// A ggml compiled with fused multiply-add (as GCC does for ARM) rounds once where this code rounds
// twice. That shows in a third of the super-blocks of q5_K and in some of q4_K; in other types it
// is rare, so that they are judged by these two. Takes some milliseconds, once.
bool ggml_rounds_alike() {
    static const bool alike = [] {
        const std::vector<float> x = trial_values(256 * kSuperBlock);
        return agrees(GGML_TYPE_Q5_K, x) && agrees(GGML_TYPE_Q4_K, x);
    }();
    return alike;
}

}  // namespace

int kquant_bits(int32_t ggml_type) {
    switch (ggml_type) {
        case GGML_TYPE_Q3_K: return 3;
        case GGML_TYPE_Q4_K: return 4;
        case GGML_TYPE_Q5_K: return 5;
        case GGML_TYPE_Q6_K: return 6;
        default: return 0;
    }
}

KquantFunction kquant_function(int32_t kernel, int32_t ggml_type) {
    if (kquant_bits(ggml_type) == 0) {
        return nullptr;
    }
    return function_of(kernel == INFEROS_KERNEL_BEST ? inferos_best_kernel() : kernel);
}

INFEROS_API int32_t inferos_best_kernel(void) {
    return ggml_rounds_alike() ? widest() : INFEROS_KERNEL_GGML;
}
