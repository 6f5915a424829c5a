// 512-bit vectors: AVX-512 F, BW, VL with VNNI. Everything here has internal linkage, since other
// files are compiled for other CPUs and a linker keeps but one of two equal inline functions.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "block_avx512.h"

namespace {

struct Avx512 {
    using Int                              = __m512i;
    using Float                            = __m512;
    using Block                            = Avx512Block;
    static constexpr bool takes_two_panels = true;
    static constexpr int  lanes = 16, registers = 32;
    static constexpr bool wide_offset = true;  // dot() takes all 8 bits of a weight, unsigned

    static Int load(const void * p) { return _mm512_loadu_si512(p); }
    static void store(void * p, Int v) { _mm512_storeu_si512(p, v); }
    static Float load_floats(const float * p) { return _mm512_loadu_ps(p); }
    static void store_floats(float * p, Float v) { _mm512_storeu_ps(p, v); }
    static Int broadcast(const void * p) {
        int32_t value;
        __builtin_memcpy(&value, p, 4);
        return _mm512_set1_epi32(value);
    }
    static Float broadcast_float(const void * p) { return _mm512_castsi512_ps(broadcast(p)); }
    static Float set(float value) { return _mm512_set1_ps(value); }
    static Float zero() { return _mm512_setzero_ps(); }

    // 16 bytes of each of the rows t, t + 4, t + 8, t + 12, a row per 128-bit lane
    static Int load_rows(const uint8_t * p, size_t stride) {
        const auto at = [p, stride](size_t lane) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p + 4 * lane * stride));
        };
        const __m256i low  = _mm256_inserti128_si256(_mm256_castsi128_si256(at(0)), at(1), 1);
        const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(at(2)), at(3), 1);
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    // 32 bytes each
    static Int load_pair(const uint8_t * low, const uint8_t * high) {
        const auto at = [](const uint8_t * p) {
            return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
        };
        return _mm512_inserti64x4(_mm512_castsi256_si512(at(low)), at(high), 1);
    }
    // a float16 of every row; put together in whole registers, as the vector units are busy
    static Float load_halves(const uint8_t * p, size_t stride) {
        const auto four = [p, stride](size_t row) {
            uint16_t halves[4];
            for (size_t i = 0; i < 4; i++) {
                __builtin_memcpy(&halves[i], p + (row + i) * stride, 2);
            }
            const uint64_t low = halves[0] | static_cast<uint64_t>(halves[1]) << 16;
            return static_cast<long long>(low | static_cast<uint64_t>(halves[2]) << 32 |
                                          static_cast<uint64_t>(halves[3]) << 48);
        };
        const __m128i low  = _mm_set_epi64x(four(4), four(0));
        const __m128i high = _mm_set_epi64x(four(12), four(8));
        return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
    }
    // neighbouring float16
    static Float load_half_run(const void * p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(p)));
    }
    // the float16 in the low (high) half of every lane
    static Float low_halves(Int v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
    static Float high_halves(Int v) { return low_halves(_mm512_srli_epi32(v, 16)); }

    // the high half of every lane of a, below the low half of b
    static Int straddle(Int a, Int b) {
        return _mm512_rol_epi32(_mm512_mask_blend_epi16(0x55555555, a, b), 16);
    }

    // the first (second) lane of every pair of 128-bit lanes, those of a before those of b
    static Int even_lanes(Int a, Int b) { return _mm512_shuffle_i32x4(a, b, 0x88); }
    static Int odd_lanes(Int a, Int b) { return _mm512_shuffle_i32x4(a, b, 0xdd); }
    // the first 16 float16
    static Float first_halves(Int v) { return _mm512_cvtph_ps(_mm512_castsi512_si256(v)); }
    // one float16 in every lane
    static Float half(const void * p) {
        uint16_t value;
        __builtin_memcpy(&value, p, 2);
        return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(value)));
    }
    // 16 signed bytes, those at the places, as floats
    static Float signed_bytes_at(const uint8_t * p, const uint8_t * places) {
        const auto at = [](const uint8_t * from) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
        };
        return to_float(_mm512_cvtepi8_epi32(_mm_shuffle_epi8(at(p), at(places))));
    }
    // by a bits in the lower 256, by b in the upper; between the two bytes of 16 bits, too
    template <int a, int b> static Int left_by(Int v) {
        return _mm512_sllv_epi16(v, counts<a, b>());
    }
    template <int a, int b> static Int right_by(Int v) {
        return _mm512_srlv_epi16(v, counts<a, b>());
    }
    template <int a, int b> static Int counts() {
        return _mm512_inserti64x4(_mm512_set1_epi16(a), _mm256_set1_epi16(b), 1);
    }
    // 32 bytes below zeros
    static Int load_lower(const uint8_t * p) {
        return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    // halves of a, and from place 32 on of b
    static Int halves_at(Int a, Int b, const uint16_t * places) {
        return _mm512_permutex2var_epi16(a, load(places), b);
    }
    // the half at its place of `from`, where a bit of `where` is set
    static Int put_halves(Int into, uint32_t where, Int from, const uint16_t * places) {
        return _mm512_mask_permutexvar_epi16(into, where, load(places), from);
    }

    // A float of each of four rows, or of two
    using Few = __m128;
    static Few zero_few() { return _mm_setzero_ps(); }
    template <int n> static Few fma_few(const float * a, const float * b, Few c) {
        return _mm_fmadd_ps(load_few<n>(a), load_few<n>(b), c);
    }
    template <int n> static Few load_few(const float * p) {
        if constexpr (n == 4) {
            return _mm_load_ps(p);
        } else {
            return _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
        }
    }
    template <int n> static void store_few(float * p, Few v) {
        if constexpr (n == 4) {
            _mm_storeu_ps(p, v);
        } else {
            _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_castps_si128(v));
        }
    }

    static Int unpack_low32(Int a, Int b) { return _mm512_unpacklo_epi32(a, b); }
    static Int unpack_high32(Int a, Int b) { return _mm512_unpackhi_epi32(a, b); }
    static Int unpack_low64(Int a, Int b) { return _mm512_unpacklo_epi64(a, b); }
    static Int unpack_high64(Int a, Int b) { return _mm512_unpackhi_epi64(a, b); }

    static Int and_bytes(Int v, uint8_t mask) {
        return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(mask)));
    }
    static Int xor_bytes(Int v, uint8_t mask) {
        return _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(mask)));
    }
    static Int sub_bytes(Int v, uint8_t n) {
        return _mm512_sub_epi8(v, _mm512_set1_epi8(static_cast<char>(n)));
    }
    // table[byte] for bytes below 16
    static Int look_up(const int8_t * table, Int bytes) {
        const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i *>(table));
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), bytes);
    }
    static constexpr bool has_byte_tables = false;  // of 128 bytes
    static constexpr bool has_gathers     = true;
    // table[lane] for every lane
    static Int look_up_words(const uint32_t * table, Int places) {
        return _mm512_i32gather_epi32(places, table, 4);
    }
    // byte j of a lane: `value` if bit 4 i + j of the lane is set, else 0
    template <int i> static Int bytes_where(Int bits, uint8_t value) {
        return _mm512_maskz_mov_epi8(bits_at<i>(bits), _mm512_set1_epi8(static_cast<char>(value)));
    }
    // byte j of a lane: total less the byte if bit 4 i + j of the lane of bits is set, else the byte
    template <int i> static Int taken_from(Int v, Int bits, uint8_t total) {
        return _mm512_mask_sub_epi8(v, bits_at<i>(bits), _mm512_set1_epi8(static_cast<char>(total)),
                                    v);
    }
    // a mask's bit 4 t + j: that of lane t's bit 4 i + j
    template <int i> static __mmask64 bits_at(Int bits) {
        const Int byte = _mm512_shuffle_epi8(
            bits,
            _mm512_set4_epi32(0x0c0c0c0c + i / 2 * 0x01010101, 0x08080808 + i / 2 * 0x01010101,
                              0x04040404 + i / 2 * 0x01010101, i / 2 * 0x01010101));
        return _mm512_test_epi8_mask(byte, _mm512_set1_epi32(0x08040201 << i % 2 * 4));
    }
    static Int bits_or(Int a, Int b) { return _mm512_or_si512(a, b); }
    static Int bits_xor(Int a, Int b) { return _mm512_xor_si512(a, b); }
    template <int n> static Int right(Int v) { return _mm512_srli_epi32(v, n); }
    template <int n> static Int left(Int v) { return _mm512_slli_epi32(v, n); }
    template <int n> static Int right_signed(Int v) { return _mm512_srai_epi32(v, n); }

    // sum + the four products of unsigned bytes of w and signed bytes of a, in every lane
    template <bool wide> static Int dot(Int sum, Int w, Int a) {
        return _mm512_dpbusd_epi32(sum, w, a);
    }
    // dot() with the same 4 bytes in every lane: those of word i
    template <bool wide> static Int dot_word(Int sum, Int w, const uint8_t * words, int i) {
        return dot<wide>(sum, w, broadcast(words + 4 * i));
    }
    // keeps the compiler from knowing what v is
    static void forget(Int & v) { __asm__("" : "+v"(v)); }
    static Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
    static Float as_float(Int v) { return _mm512_castsi512_ps(v); }
    static Int as_int(Float v) { return _mm512_castps_si512(v); }
    static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
    static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
    static Float abs(Float v) { return _mm512_abs_ps(v); }
    static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static Float fnma(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }
    // b where a is NaN
    static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
    static Float max_across(Float v) { return set(_mm512_reduce_max_ps(v)); }
    // halves onto each other
    static float sum_across(Float v) {
        const __m256 s =
            _mm256_add_ps(_mm512_castps512_ps256(v),
                          _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
        __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
        t        = _mm_add_ps(t, _mm_movehl_ps(t, t));
        return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
    }
    // a where x < y, else b; b where either is NaN
    static Float where_less(Float x, Float y, Float a, Float b) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
    }
    static Float where_equal(Float x, Float y, Float a, Float b) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ), b, a);
    }
    // a bit for every lane
    static unsigned differing(Float x, Float y) { return _mm512_cmp_ps_mask(x, y, _CMP_NEQ_UQ); }
    static Float round(Float v) {
        return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    // v * 2^n for whole n within the exponents of normal numbers
    static Float scale_by_power(Float v, Float n) { return _mm512_scalef_ps(v, n); }

    // neighbouring bytes, widened
    static Int signed_bytes(const void * p) {
        return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(p)));
    }
    static Int unsigned_bytes(const void * p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(p)));
    }
    // neighbouring 16-bit integers, widened
    static Int unsigned_halves(const void * p) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i *>(p)));
    }
    static Int mul_ints(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
    static Int mul_ints(Int a, int32_t b) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(b)); }
    static Int add_ints(Int a, Int b) { return _mm512_add_epi32(a, b); }
    static Int add_ints(Int a, int32_t b) { return _mm512_add_epi32(a, _mm512_set1_epi32(b)); }
    static Int and_ints(Int a, int32_t b) { return _mm512_and_si512(a, _mm512_set1_epi32(b)); }
};

}  // namespace
