// Columns of activations into tiles: the integers and scales of ggml's quantize_row_q8_0.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace {

// 256-bit in every variant: it is no hot spot, and all have AVX2 and F16C.
inline __m256i rounded(__m256 values, __m256 inverse) {
    // NaN and infinity become INT_MIN, in the end -127: the scale alone says what they are
    return _mm256_cvtps_epi32(_mm256_mul_ps(values, inverse));
}

inline int32_t sum_across(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s         = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s         = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

void quantize_columns(const float * x, int64_t n_blocks, int32_t offset, bool split, int32_t width,
                      int32_t column, uint8_t * tile) {
    using inferos::kernels::kBlock;
    using inferos::kernels::kColumnBytes;
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const __m256i order     = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t b = 0; b < n_blocks; b++, x += kBlock) {
        __m256 values[4];
        // compared as integers, NaN is the largest of all: none is lost
        __m256i largest = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            values[i] = _mm256_loadu_ps(x + 8 * i);
            largest   = _mm256_max_epi32(
                largest, _mm256_and_si256(_mm256_castps_si256(values[i]), magnitude));
        }
        __m128i top = _mm_max_epi32(_mm256_castsi256_si128(largest),
                                    _mm256_extracti128_si256(largest, 1));
        top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
        top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
        const float  amax    = _mm_cvtss_f32(_mm_castsi128_ps(top));
        const float  scale   = _cvtsh_ss(_cvtss_sh(amax / 127.0f, 0));
        const __m256 inverse = _mm256_set1_ps(amax != 0.0f ? 127.0f / amax : 0.0f);
        __m256i      ints[4];
        for (int i = 0; i < 4; i++) {
            ints[i] = rounded(values[i], inverse);
        }
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(ints[0], ints[1]),
                                                  _mm256_packs_epi32(ints[2], ints[3]));
        // -128 has no negative, which AVX2 without VNNI needs
        const __m256i bytes  = _mm256_permutevar8x32_epi32(
            _mm256_max_epi8(packed, _mm256_set1_epi8(-127)), order);
        uint8_t * block = tile + b * width * static_cast<int64_t>(kColumnBytes);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(block + kBlock * column), bytes);
        // sums of what was stored, which for NaN is not what was rounded
        const __m256i ones   = _mm256_set1_epi16(1);
        const __m256i first  = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes));
        const __m256i last   = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1));
        const int32_t sum0   = sum_across(_mm256_madd_epi16(first, ones));
        const int32_t sum1   = sum_across(_mm256_madd_epi16(last, ones));
        const int32_t starts[2] = {-offset * (split ? sum0 : sum0 + sum1), -offset * sum1};
        const float   sum       = scale * static_cast<float>(sum0 + sum1);
        uint8_t *     rest      = block + kBlock * width;
        __builtin_memcpy(rest + 4 * column, &scale, 4);
        __builtin_memcpy(rest + 4 * (width + column), &starts[0], 4);
        __builtin_memcpy(rest + 4 * (2 * width + column), &starts[1], 4);
        __builtin_memcpy(rest + 4 * (3 * width + column), &sum, 4);
    }
}

}  // namespace
