// 32 activations in 256-bit registers, to be quantized.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

class Avx2Block {
  public:
    explicit Avx2Block(const float * x) {
        for (int i = 0; i < 4; i++) {
            values_[i] = _mm256_loadu_ps(x + 8 * i);
        }
    }

    float largest() const {
        const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
        __m256i       largest   = _mm256_setzero_si256();
        for (const __m256 & v : values_) {
            largest =
                _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(v), magnitude));
        }
        __m128i top =
            _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
        top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
        top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
        return _mm_cvtss_f32(_mm_castsi128_ps(top));
    }

    static float as_half(float value) { return _cvtsh_ss(_cvtss_sh(value, 0)); }

    void quantize(float inverse, uint8_t * quants, int32_t * sums) const {
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        __m256i       ints[4];
        for (int i = 0; i < 4; i++) {
            // NaN and infinity become INT_MIN, in the end -127
            ints[i] = _mm256_cvtps_epi32(_mm256_mul_ps(values_[i], _mm256_set1_ps(inverse)));
        }
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(ints[0], ints[1]),
                                                  _mm256_packs_epi32(ints[2], ints[3]));
        // -128 has no negative, which AVX2 without VNNI needs
        const __m256i bytes =
            _mm256_permutevar8x32_epi32(_mm256_max_epi8(packed, _mm256_set1_epi8(-127)), order);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(quants), bytes);
        // either half of the values is in a lane of 128 bits: both are summed at once
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        __m256i       fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        fours               = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
        fours               = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0xb1));
        sums[0]             = _mm_cvtsi128_si32(_mm256_castsi256_si128(fours));
        sums[1]             = _mm_cvtsi128_si32(_mm256_extracti128_si256(fours, 1));
    }

  private:
    __m256 values_[4];
};

}  // namespace
