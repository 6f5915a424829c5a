// How the blocks of each type become vectors whose lanes are rows: eight of unsigned bytes, four
// neighbouring values per lane, and their scales. The layouts are ggml's (ggml-common.h).
#pragma once

#include "kernels.h"

namespace {

// 32 values of every row of a panel. `other` is the scale of the last 16 values, or the minimum.
template <class Isa> struct Unpacked {
    typename Isa::Int   quants[8];
    typename Isa::Float scale;
    typename Isa::Float other;
};

// out[i]: bytes 4 i to 4 i + 3 of 16 bytes at p of every row. Two levels of interleaving within
// 128-bit lanes are enough, since load_rows has put every fourth row beside each other.
template <class Isa>
inline void transpose16(const uint8_t * p, size_t stride, typename Isa::Int * out) {
    const auto a = Isa::load_rows(p, stride);
    const auto b = Isa::load_rows(p + stride, stride);
    const auto c = Isa::load_rows(p + 2 * stride, stride);
    const auto d = Isa::load_rows(p + 3 * stride, stride);
    const auto ab_low = Isa::unpack_low32(a, b), ab_high = Isa::unpack_high32(a, b);
    const auto cd_low = Isa::unpack_low32(c, d), cd_high = Isa::unpack_high32(c, d);
    out[0] = Isa::unpack_low64(ab_low, cd_low);
    out[1] = Isa::unpack_high64(ab_low, cd_low);
    out[2] = Isa::unpack_low64(ab_high, cd_high);
    out[3] = Isa::unpack_high64(ab_high, cd_high);
}

enum class Other { none, split, minimum };

struct Q4_0 {
    static constexpr int   type = 2, values = 32, bytes = 18, offset = 8;
    static constexpr bool  wide  = false;
    static constexpr Other other = Other::none;

    template <class Isa> static void unpack(const uint8_t * p, size_t stride, Unpacked<Isa> * out) {
        typename Isa::Int raw[4];
        transpose16<Isa>(p + 2, stride, raw);
        for (int i = 0; i < 4; i++) {
            out->quants[i]     = Isa::and_bytes(raw[i], 0x0f);
            out->quants[i + 4] = Isa::and_bytes(Isa::template right<4>(raw[i]), 0x0f);
        }
        out->scale = Isa::load_halves(p, stride);
    }
};

struct Q8_0 {
    static constexpr int   type = 8, values = 32, bytes = 34, offset = 128;
    static constexpr bool  wide  = true;
    static constexpr Other other = Other::none;

    template <class Isa> static void unpack(const uint8_t * p, size_t stride, Unpacked<Isa> * out) {
        transpose16<Isa>(p + 2, stride, out->quants);
        transpose16<Isa>(p + 18, stride, out->quants + 4);
        for (auto & quants : out->quants) {
            quants = Isa::xor_bytes(quants, 0x80);
        }
        out->scale = Isa::load_halves(p, stride);
    }
};

// A byte of every lane as a float.
template <class Isa, int byte> inline typename Isa::Float byte_of(typename Isa::Int v) {
    return Isa::to_float(Isa::and_ints(Isa::template right<8 * byte>(v), 0xff));
}
template <class Isa, int byte> inline typename Isa::Float signed_byte_of(typename Isa::Int v) {
    return Isa::to_float(Isa::template right_signed<24>(Isa::template left<24 - 8 * byte>(v)));
}

// The header of q4_K and q5_K: two float16, then eight scales and eight minima of 6 bits.
template <class Isa>
inline void unpack_k_scales(const uint8_t * p, size_t stride, Unpacked<Isa> * out) {
    typename Isa::Int head[4];
    transpose16<Isa>(p, stride, head);
    const auto d = Isa::low_halves(head[0]), dmin = Isa::high_halves(head[0]);
    const auto top = [](typename Isa::Int v) {
        return Isa::and_bytes(Isa::template right<2>(v), 0x30);
    };
    const typename Isa::Int scales[2] = {
        Isa::and_bytes(head[1], 0x3f),
        Isa::bits_or(Isa::and_bytes(head[3], 0x0f), top(head[1])),
    };
    const typename Isa::Int minima[2] = {
        Isa::and_bytes(head[2], 0x3f),
        Isa::bits_or(Isa::and_bytes(Isa::template right<4>(head[3]), 0x0f), top(head[2])),
    };
    for (int i = 0; i < 2; i++) {
        out[4 * i].scale     = Isa::mul(d, byte_of<Isa, 0>(scales[i]));
        out[4 * i + 1].scale = Isa::mul(d, byte_of<Isa, 1>(scales[i]));
        out[4 * i + 2].scale = Isa::mul(d, byte_of<Isa, 2>(scales[i]));
        out[4 * i + 3].scale = Isa::mul(d, byte_of<Isa, 3>(scales[i]));
        out[4 * i].other     = Isa::mul(dmin, byte_of<Isa, 0>(minima[i]));
        out[4 * i + 1].other = Isa::mul(dmin, byte_of<Isa, 1>(minima[i]));
        out[4 * i + 2].other = Isa::mul(dmin, byte_of<Isa, 2>(minima[i]));
        out[4 * i + 3].other = Isa::mul(dmin, byte_of<Isa, 3>(minima[i]));
    }
}

struct Q4_K {
    static constexpr int   type = 12, values = 256, bytes = 144, offset = 0;
    static constexpr bool  wide  = false;
    static constexpr Other other = Other::minimum;

    template <class Isa> static void unpack(const uint8_t * p, size_t stride, Unpacked<Isa> * out) {
        unpack_k_scales<Isa>(p, stride, out);
        for (int pair = 0; pair < 4; pair++) {
            typename Isa::Int raw[8];
            transpose16<Isa>(p + 16 + 32 * pair, stride, raw);
            transpose16<Isa>(p + 32 + 32 * pair, stride, raw + 4);
            for (int i = 0; i < 8; i++) {
                out[2 * pair].quants[i]     = Isa::and_bytes(raw[i], 0x0f);
                out[2 * pair + 1].quants[i] =
                    Isa::and_bytes(Isa::template right<4>(raw[i]), 0x0f);
            }
        }
    }
};

// Bit n of every byte, as 16.
template <class Isa, int n> inline typename Isa::Int fifth_bit(typename Isa::Int v) {
    if constexpr (n <= 4) {
        return Isa::and_bytes(Isa::template left<4 - n>(v), 0x10);
    } else {
        return Isa::and_bytes(Isa::template right<n - 4>(v), 0x10);
    }
}

struct Q5_K {
    static constexpr int   type = 13, values = 256, bytes = 176, offset = 0;
    static constexpr bool  wide  = false;
    static constexpr Other other = Other::minimum;

    template <int pair, class Isa>
    static void unpack_pair(const uint8_t * p, size_t stride, const typename Isa::Int * high,
                            Unpacked<Isa> * out) {
        typename Isa::Int raw[8];
        transpose16<Isa>(p + 48 + 32 * pair, stride, raw);
        transpose16<Isa>(p + 64 + 32 * pair, stride, raw + 4);
        for (int i = 0; i < 8; i++) {
            out[2 * pair].quants[i] =
                Isa::bits_or(Isa::and_bytes(raw[i], 0x0f), fifth_bit<Isa, 2 * pair>(high[i]));
            out[2 * pair + 1].quants[i] =
                Isa::bits_or(Isa::and_bytes(Isa::template right<4>(raw[i]), 0x0f),
                             fifth_bit<Isa, 2 * pair + 1>(high[i]));
        }
    }
    template <class Isa> static void unpack(const uint8_t * p, size_t stride, Unpacked<Isa> * out) {
        unpack_k_scales<Isa>(p, stride, out);
        typename Isa::Int high[8];
        transpose16<Isa>(p + 16, stride, high);
        transpose16<Isa>(p + 32, stride, high + 4);
        unpack_pair<0>(p, stride, high, out);
        unpack_pair<1>(p, stride, high, out);
        unpack_pair<2>(p, stride, high, out);
        unpack_pair<3>(p, stride, high, out);
    }
};

struct Q6_K {
    static constexpr int   type = 14, values = 256, bytes = 210, offset = 32;
    static constexpr bool  wide  = false;
    static constexpr Other other = Other::split;

    // Two bits of every byte, as bits 4 and 5.
    template <class Isa, int shift> static typename Isa::Int top_bits(typename Isa::Int v) {
        if constexpr (shift <= 4) {
            return Isa::and_bytes(Isa::template left<4 - shift>(v), 0x30);
        } else {
            return Isa::and_bytes(Isa::template right<shift - 4>(v), 0x30);
        }
    }
    // 128 values: four blocks from 64 bytes of low and 32 bytes of high bits
    template <class Isa>
    static void unpack_half(const uint8_t * low, const uint8_t * high, size_t stride,
                            Unpacked<Isa> * out) {
        for (int part = 0; part < 2; part++) {
            typename Isa::Int top[4], first[4], second[4];
            transpose16<Isa>(high + 16 * part, stride, top);
            transpose16<Isa>(low + 16 * part, stride, first);
            transpose16<Isa>(low + 32 + 16 * part, stride, second);
            for (int i = 0; i < 4; i++) {
                const int at      = 4 * part + i;
                out[0].quants[at] = Isa::bits_or(Isa::and_bytes(first[i], 0x0f),
                                                 top_bits<Isa, 0>(top[i]));
                out[1].quants[at] = Isa::bits_or(Isa::and_bytes(second[i], 0x0f),
                                                 top_bits<Isa, 2>(top[i]));
                out[2].quants[at] = Isa::bits_or(
                    Isa::and_bytes(Isa::template right<4>(first[i]), 0x0f),
                    top_bits<Isa, 4>(top[i]));
                out[3].quants[at] = Isa::bits_or(
                    Isa::and_bytes(Isa::template right<4>(second[i]), 0x0f),
                    top_bits<Isa, 6>(top[i]));
            }
        }
    }
    template <class Isa> static void unpack(const uint8_t * p, size_t stride, Unpacked<Isa> * out) {
        unpack_half<Isa>(p, p + 128, stride, out);
        unpack_half<Isa>(p + 64, p + 160, stride, out + 4);
        typename Isa::Int scales[4];
        transpose16<Isa>(p + 192, stride, scales);
        const auto d = Isa::load_halves(p + 208, stride);
        for (int i = 0; i < 4; i++) {
            out[2 * i].scale     = Isa::mul(d, signed_byte_of<Isa, 0>(scales[i]));
            out[2 * i].other     = Isa::mul(d, signed_byte_of<Isa, 1>(scales[i]));
            out[2 * i + 1].scale = Isa::mul(d, signed_byte_of<Isa, 2>(scales[i]));
            out[2 * i + 1].other = Isa::mul(d, signed_byte_of<Isa, 3>(scales[i]));
        }
    }
};

}  // namespace
