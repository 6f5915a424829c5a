// Rows of floats in, rows of q3_K, q4_K, q5_K or q6_K out, with the bytes that ggml_quantize_chunk
// writes: the same searches, run for many sub-blocks side by side.
#pragma once

#include <stdint.h>

// Values of a super-block, the unit of these formats.
constexpr int kSuperBlock = 256;

struct KquantRows {
    const float * x;           // (n_blocks * kSuperBlock,)
    uint8_t *     out;         // n_blocks super-blocks
    const float * importance;  // (blocks_per_row * kSuperBlock,) or null
    int64_t       n_blocks;
    int64_t       blocks_per_row;
    int           bits;  // 3 for q3_K, and so on
};

using KquantFunction = void (*)(const KquantRows & rows);

// Compilations of kquants_blocks.h for one CPU each; those for x86 exist there alone.
void kquants_baseline(const KquantRows & rows);
void kquants_avx2(const KquantRows & rows);
void kquants_avx512(const KquantRows & rows);

// The bits of a type that these functions write, or 0.
int kquant_bits(int32_t ggml_type);

// The function of an inferos_kernel for a type; null where there is none and ggml serves.
KquantFunction kquant_function(int32_t kernel, int32_t ggml_type);
