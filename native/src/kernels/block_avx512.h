// 32 activations in 512-bit registers, to be quantized, as block_avx2.h has them in 256.
#pragma once

#include "block_avx2.h"

namespace {

class Avx512Block {
  public:
    explicit Avx512Block(const float * x)
        : low_(_mm512_loadu_ps(x)), high_(_mm512_loadu_ps(x + 16)) {}

    float largest() const {
        const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
        const __m512i both =
            _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low_), magnitude),
                             _mm512_and_si512(_mm512_castps_si512(high_), magnitude));
        return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(both))));
    }

    static float as_half(float value) { return Avx2Block::as_half(value); }

    void quantize(float inverse, uint8_t * quants, int32_t * sums) const {
        const __m512 factor = _mm512_set1_ps(inverse);
        // NaN and infinity become INT_MIN, in the end -127
        const __m128i low = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low_, factor)));
        const __m128i high =
            _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high_, factor)));
        // as block_avx2.h has it, though nothing here needs a negative of -128
        const __m256i bytes = _mm256_max_epi8(
            _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1), _mm256_set1_epi8(-127));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(quants), bytes);
        __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
        fours         = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
        fours         = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0xb1));
        sums[0]       = _mm_cvtsi128_si32(_mm256_castsi256_si128(fours));
        sums[1]       = _mm_cvtsi128_si32(_mm256_extracti128_si256(fours, 1));
    }

  private:
    __m512 low_, high_;
};

}  // namespace
