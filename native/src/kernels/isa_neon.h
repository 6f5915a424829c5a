// 128-bit vectors of arm64 with the dot products of ARMv8.2 (FEAT_DotProd). Everything here has
// internal linkage, see isa_avx512.h.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "block_neon.h"

namespace {

struct Neon {
    using Int                              = int32x4_t;
    using Float                            = float32x4_t;
    using Block                            = NeonBlock;
    static constexpr bool takes_two_panels = false;
    static constexpr int  lanes = 4, registers = 32;
    static constexpr bool wide_offset = false;  // wide weights stay signed

    static Int load(const void * p) { return bytes_at(p); }
    static void store(void * p, Int v) {
        vst1q_u8(static_cast<uint8_t *>(p), vreinterpretq_u8_s32(v));
    }
    static Float load_floats(const float * p) { return vld1q_f32(p); }
    static void store_floats(float * p, Float v) { vst1q_f32(p, v); }
    static Int broadcast(const void * p) { return vdupq_n_s32(word_at(p)); }
    static Float broadcast_float(const void * p) { return vreinterpretq_f32_s32(broadcast(p)); }
    static Float set(float value) { return vdupq_n_f32(value); }
    static Float zero() { return vdupq_n_f32(0.0f); }

    // 16 bytes of row t, which alone is in the vector
    static Int load_rows(const uint8_t * p, size_t) { return bytes_at(p); }
    // a float16 of every row
    static Float load_halves(const uint8_t * p, size_t stride) {
        const auto at = [p, stride](size_t row) {
            uint16_t value;
            __builtin_memcpy(&value, p + row * stride, 2);
            return value;
        };
        const uint16x4_t halves = {at(0), at(1), at(2), at(3)};
        return widened(halves);
    }
    // neighbouring float16
    static Float load_half_run(const void * p) {
        return widened(vreinterpret_u16_u8(vld1_u8(static_cast<const uint8_t *>(p))));
    }
    // the float16 in the low (high) half of every lane
    static Float low_halves(Int v) { return widened(vmovn_u32(vreinterpretq_u32_s32(v))); }
    static Float high_halves(Int v) { return widened(vshrn_n_u32(vreinterpretq_u32_s32(v), 16)); }

    // the high half of every lane of a, below the low half of b
    static Int straddle(Int a, Int b) { return vsliq_n_s32(right<16>(a), b, 16); }

    static Int unpack_low32(Int a, Int b) { return vzip1q_s32(a, b); }
    static Int unpack_high32(Int a, Int b) { return vzip2q_s32(a, b); }
    static Int unpack_low64(Int a, Int b) {
        return vreinterpretq_s32_s64(
            vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
    }
    static Int unpack_high64(Int a, Int b) {
        return vreinterpretq_s32_s64(
            vzip2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
    }

    static Int and_bytes(Int v, uint8_t mask) { return vandq_s32(v, every_byte(mask)); }
    static Int xor_bytes(Int v, uint8_t mask) { return veorq_s32(v, every_byte(mask)); }
    // table[byte] for bytes below 16
    static Int look_up(const int8_t * table, Int bytes) {
        return vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_s32(bytes)));
    }
    static constexpr bool has_byte_tables = false;  // of 128 bytes
    static constexpr bool has_gathers     = false;
    // table[lane] for every lane
    static Int look_up_words(const uint32_t * table, Int places) {
        const uint32x4_t found = {
            table[vgetq_lane_s32(places, 0)], table[vgetq_lane_s32(places, 1)],
            table[vgetq_lane_s32(places, 2)], table[vgetq_lane_s32(places, 3)]};
        return vreinterpretq_s32_u32(found);
    }
    // byte j of a lane: `value` if bit 4 i + j of the lane is set, else 0
    template <int i> static Int bytes_where(Int bits, uint8_t value) {
        return vreinterpretq_s32_u8(vandq_u8(bytes_where_set<i>(bits), vdupq_n_u8(value)));
    }
    // byte j of a lane: total less the byte if bit 4 i + j of the lane of bits is set, else the byte
    template <int i> static Int taken_from(Int v, Int bits, uint8_t total) {
        const uint8x16_t bytes = vreinterpretq_u8_s32(v);
        return vreinterpretq_s32_u8(
            vbslq_u8(bytes_where_set<i>(bits), vsubq_u8(vdupq_n_u8(total), bytes), bytes));
    }
    // byte j of a lane: all ones if bit 4 i + j of the lane is set, else 0
    template <int i> static uint8x16_t bytes_where_set(Int bits) {
        const uint32x4_t from = {i / 2 * 0x01010101u, 0x04040404u + i / 2 * 0x01010101u,
                                 0x08080808u + i / 2 * 0x01010101u,
                                 0x0c0c0c0cu + i / 2 * 0x01010101u};
        const uint8x16_t byte = vqtbl1q_u8(vreinterpretq_u8_s32(bits), vreinterpretq_u8_u32(from));
        return vtstq_u8(byte, vreinterpretq_u8_u32(vdupq_n_u32(0x08040201u << i % 2 * 4)));
    }
    static Int bits_or(Int a, Int b) { return vorrq_s32(a, b); }
    static Int bits_xor(Int a, Int b) { return veorq_s32(a, b); }
    template <int n> static Int right(Int v) {
        if constexpr (n == 0) {
            return v;  // the instruction shifts by 1 at least
        } else {
            return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), n));
        }
    }
    template <int n> static Int left(Int v) { return vshlq_n_s32(v, n); }
    template <int n> static Int right_signed(Int v) { return vshrq_n_s32(v, n); }

    // sum + the four products of bytes of w and signed bytes of a, in every lane. Both factors are
    // signed here: weights of up to 7 bits are alike either way, wide ones stay signed.
    template <bool wide> static Int dot(Int sum, Int w, Int a) {
        return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a));
    }
    // dot() with the same 4 bytes in every lane: those of word i
    template <bool wide> static Int dot_word(Int sum, Int w, const uint8_t * words, int i) {
        const int8x16_t a = vreinterpretq_s8_s32(bytes_at(words + i / 4 * 16));
        switch (i % 4) {  // i is known when the loop around is unrolled
            case 0: return vdotq_laneq_s32(sum, vreinterpretq_s8_s32(w), a, 0);
            case 1: return vdotq_laneq_s32(sum, vreinterpretq_s8_s32(w), a, 1);
            case 2: return vdotq_laneq_s32(sum, vreinterpretq_s8_s32(w), a, 2);
            default: return vdotq_laneq_s32(sum, vreinterpretq_s8_s32(w), a, 3);
        }
    }
    // keeps the compiler from knowing what v is
    static void forget(Int & v) { __asm__("" : "+w"(v)); }
    static Float to_float(Int v) { return vcvtq_f32_s32(v); }
    static Float as_float(Int v) { return vreinterpretq_f32_s32(v); }
    static Float add(Float a, Float b) { return vaddq_f32(a, b); }
    static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
    static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
    static Float div(Float a, Float b) { return vdivq_f32(a, b); }
    static Float abs(Float v) { return vabsq_f32(v); }
    static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
    static Float fnma(Float a, Float b, Float c) { return vfmsq_f32(c, a, b); }
    // b where a is NaN
    static Float max(Float a, Float b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
    static Float max_across(Float v) { return vdupq_n_f32(vmaxvq_f32(v)); }
    // halves onto each other
    static float sum_across(Float v) {
        const float32x2_t s = vadd_f32(vget_low_f32(v), vget_high_f32(v));
        return vget_lane_f32(s, 0) + vget_lane_f32(s, 1);
    }
    // a where x < y, else b; b where either is NaN
    static Float where_less(Float x, Float y, Float a, Float b) {
        return vbslq_f32(vcltq_f32(x, y), a, b);
    }
    static Float where_equal(Float x, Float y, Float a, Float b) {
        return vbslq_f32(vceqq_f32(x, y), a, b);
    }
    // a bit for every lane
    static unsigned differing(Float x, Float y) {
        const uint32x4_t bits = {1, 2, 4, 8};
        return vaddvq_u32(vbicq_u32(bits, vceqq_f32(x, y)));
    }
    static Float round(Float v) { return vrndnq_f32(v); }
    // v * 2^n for whole n within the exponents of normal numbers
    static Float scale_by_power(Float v, Float n) {
        const Int power = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
        return vmulq_f32(v, vreinterpretq_f32_s32(vshlq_n_s32(power, 23)));
    }

    // neighbouring bytes, widened
    static Int signed_bytes(const void * p) {
        const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(word_at(p)));
        return vmovl_s16(vget_low_s16(vmovl_s8(bytes)));
    }
    static Int unsigned_bytes(const void * p) {
        const uint8x8_t bytes = vreinterpret_u8_s32(vdup_n_s32(word_at(p)));
        return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
    }
    // neighbouring 16-bit integers, widened
    static Int unsigned_halves(const void * p) {
        const uint16x4_t halves = vreinterpret_u16_u8(vld1_u8(static_cast<const uint8_t *>(p)));
        return vreinterpretq_s32_u32(vmovl_u16(halves));
    }
    static Int mul_ints(Int a, Int b) { return vmulq_s32(a, b); }
    static Int mul_ints(Int a, int32_t b) { return vmulq_n_s32(a, b); }
    static Int add_ints(Int a, Int b) { return vaddq_s32(a, b); }
    static Int add_ints(Int a, int32_t b) { return vaddq_s32(a, vdupq_n_s32(b)); }
    static Int and_ints(Int a, int32_t b) { return vandq_s32(a, vdupq_n_s32(b)); }

  private:
    static int32_t word_at(const void * p) {
        int32_t value;
        __builtin_memcpy(&value, p, 4);
        return value;
    }
    static Int bytes_at(const void * p) {
        return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t *>(p)));
    }
    static Int every_byte(uint8_t value) { return vreinterpretq_s32_u8(vdupq_n_u8(value)); }
    static Float widened(uint16x4_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); }
};

}  // namespace
