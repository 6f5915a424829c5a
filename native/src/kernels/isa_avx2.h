// 256-bit vectors: AVX2, FMA and F16C, with VNNI in either of its encodings or without. Everything
// here has internal linkage, see isa_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "block_avx2.h"

namespace {

struct Avx2 {
    using Int                              = __m256i;
    using Float                            = __m256;
    using Block                            = Avx2Block;
    static constexpr bool takes_two_panels = false;
    static constexpr int  lanes = 8, registers = 16;
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
    static constexpr bool wide_offset = true;  // dot() takes all 8 bits of a weight, unsigned
#else
    static constexpr bool wide_offset = false;  // wide weights stay signed
#endif

    static Int load(const void * p) { return _mm256_loadu_si256(static_cast<const Int *>(p)); }
    static void store(void * p, Int v) { _mm256_storeu_si256(static_cast<Int *>(p), v); }
    static Float load_floats(const float * p) { return _mm256_loadu_ps(p); }
    static void store_floats(float * p, Float v) { _mm256_storeu_ps(p, v); }
    static Int broadcast(const void * p) {
        int32_t value;
        __builtin_memcpy(&value, p, 4);
        return _mm256_set1_epi32(value);
    }
    static Float broadcast_float(const void * p) { return _mm256_castsi256_ps(broadcast(p)); }
    static Float set(float value) { return _mm256_set1_ps(value); }
    static Float zero() { return _mm256_setzero_ps(); }

    // 16 bytes of each of the rows t and t + 4, a row per 128-bit lane
    static Int load_rows(const uint8_t * p, size_t stride) {
        const auto at = [p, stride](size_t row) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p + row * stride));
        };
        return _mm256_inserti128_si256(_mm256_castsi128_si256(at(0)), at(4), 1);
    }
    // a float16 of every row
    static Float load_halves(const uint8_t * p, size_t stride) {
        const auto at = [p, stride](size_t row) {
            int16_t value;
            __builtin_memcpy(&value, p + row * stride, 2);
            return value;
        };
        return _mm256_cvtph_ps(
            _mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)));
    }
    // neighbouring float16
    static Float load_half_run(const void * p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i *>(p)));
    }
    // the float16 in the low (high) half of every lane
    static Float low_halves(Int v) { return high_halves(_mm256_slli_epi32(v, 16)); }
    static Float high_halves(Int v) {
        const Int high = _mm256_srli_epi32(v, 16);
        return _mm256_cvtph_ps(
            _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
    }

    // the high half of every lane of a, below the low half of b
    static Int straddle(Int a, Int b) {
        const Int swapped = _mm256_blend_epi16(a, b, 0x55);
        return _mm256_or_si256(_mm256_srli_epi32(swapped, 16), _mm256_slli_epi32(swapped, 16));
    }

    static Int unpack_low32(Int a, Int b) { return _mm256_unpacklo_epi32(a, b); }
    static Int unpack_high32(Int a, Int b) { return _mm256_unpackhi_epi32(a, b); }
    static Int unpack_low64(Int a, Int b) { return _mm256_unpacklo_epi64(a, b); }
    static Int unpack_high64(Int a, Int b) { return _mm256_unpackhi_epi64(a, b); }

    static Int and_bytes(Int v, uint8_t mask) {
        return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(mask)));
    }
    static Int xor_bytes(Int v, uint8_t mask) {
        return _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(mask)));
    }
    // table[byte] for bytes below 16
    static Int look_up(const int8_t * table, Int bytes) {
        const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i *>(table));
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), bytes);
    }
    static constexpr bool has_byte_tables = false;  // of 128 bytes
    static constexpr bool has_gathers     = true;
    // table[lane] for every lane
    static Int look_up_words(const uint32_t * table, Int places) {
        return _mm256_i32gather_epi32(reinterpret_cast<const int *>(table), places, 4);
    }
    // byte j of a lane: `value` if bit 4 i + j of the lane is set, else 0
    template <int i> static Int bytes_where(Int bits, uint8_t value) {
        return and_bytes(bytes_at<i>(bits), value);
    }
    // byte j of a lane: total less the byte if bit 4 i + j of the lane of bits is set, else the byte
    template <int i> static Int taken_from(Int v, Int bits, uint8_t total) {
        const Int where = bytes_at<i>(bits);  // -1 - v, and total + 1
        return _mm256_add_epi8(_mm256_xor_si256(v, where),
                               and_bytes(where, static_cast<uint8_t>(total + 1)));
    }
    // byte j of a lane: all ones if bit 4 i + j of the lane is set, else 0
    template <int i> static Int bytes_at(Int bits) {
        const __m128i from =
            _mm_set_epi32(0x0c0c0c0c + i / 2 * 0x01010101, 0x08080808 + i / 2 * 0x01010101,
                          0x04040404 + i / 2 * 0x01010101, i / 2 * 0x01010101);
        const Int byte = _mm256_shuffle_epi8(bits, _mm256_broadcastsi128_si256(from));
        const Int bit  = _mm256_set1_epi32(static_cast<int>(0x08040201u << i % 2 * 4));
        return _mm256_cmpeq_epi8(_mm256_and_si256(byte, bit), bit);
    }
    static Int bits_or(Int a, Int b) { return _mm256_or_si256(a, b); }
    static Int bits_xor(Int a, Int b) { return _mm256_xor_si256(a, b); }
    template <int n> static Int right(Int v) { return _mm256_srli_epi32(v, n); }
    template <int n> static Int left(Int v) { return _mm256_slli_epi32(v, n); }
    template <int n> static Int right_signed(Int v) { return _mm256_srai_epi32(v, n); }

    // sum + the four products of bytes of w and signed bytes of a, in every lane. Without VNNI,
    // pairs are added in 16 bits: weights of up to 7 bits fit unsigned; wide ones are signed, and
    // give their sign to a.
    template <bool wide> static Int dot(Int sum, Int w, Int a) {
#if defined(__AVXVNNI__)
        return _mm256_dpbusd_avx_epi32(sum, w, a);
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
        return _mm256_dpbusd_epi32(sum, w, a);
#else
        const Int ones = _mm256_set1_epi16(1);
        if constexpr (wide) {
            a = _mm256_sign_epi8(a, w);
            w = _mm256_abs_epi8(w);
        }
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), ones));
#endif
    }
    // dot() with the same 4 bytes in every lane: those of word i
    template <bool wide> static Int dot_word(Int sum, Int w, const uint8_t * words, int i) {
        return dot<wide>(sum, w, broadcast(words + 4 * i));
    }
    // keeps the compiler from knowing what v is
    static void forget(Int & v) { __asm__("" : "+v"(v)); }
    static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
    static Float as_float(Int v) { return _mm256_castsi256_ps(v); }
    static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
    static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
    static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
    static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
    static Float abs(Float v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
    static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    static Float fnma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }
    // b where a is NaN
    static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
    static Float max_across(Float v) {
        Float m = _mm256_max_ps(v, _mm256_permute2f128_ps(v, v, 1));
        m       = _mm256_max_ps(m, _mm256_permute_ps(m, 0x4e));
        return _mm256_max_ps(m, _mm256_permute_ps(m, 0xb1));
    }
    // halves onto each other
    static float sum_across(Float v) {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        s        = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }
    // a where x < y, else b; b where either is NaN
    static Float where_less(Float x, Float y, Float a, Float b) {
        return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
    }
    static Float where_equal(Float x, Float y, Float a, Float b) {
        return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_EQ_OQ));
    }
    // a bit for every lane
    static unsigned differing(Float x, Float y) {
        return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_NEQ_UQ)));
    }
    static Float round(Float v) {
        return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    // v * 2^n for whole n within the exponents of normal numbers
    static Float scale_by_power(Float v, Float n) {
        const Int power = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
    }

    // neighbouring bytes, widened
    static Int signed_bytes(const void * p) {
        return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(p)));
    }
    static Int unsigned_bytes(const void * p) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(p)));
    }
    // neighbouring 16-bit integers, widened
    static Int unsigned_halves(const void * p) {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i *>(p)));
    }
    static Int mul_ints(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
    static Int mul_ints(Int a, int32_t b) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(b)); }
    static Int add_ints(Int a, Int b) { return _mm256_add_epi32(a, b); }
    static Int add_ints(Int a, int32_t b) { return _mm256_add_epi32(a, _mm256_set1_epi32(b)); }
    static Int and_ints(Int a, int32_t b) { return _mm256_and_si256(a, _mm256_set1_epi32(b)); }
};

}  // namespace
