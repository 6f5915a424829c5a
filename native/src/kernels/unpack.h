// How the blocks of each type become vectors whose lanes are rows: eight of unsigned bytes, four
// neighbouring values per lane, and their scales. The layouts are ggml's (ggml-common.h).
#pragma once

#include "kernels.h"

// What is written apart to be read, and must be compiled as one: vectors stay in registers.
#define ALWAYS __attribute__((always_inline))
#define INLINE static inline ALWAYS

namespace {

// 32 values of every row of a panel. `other` is the scale of the last 16 values, or the minimum.
template <class Isa> struct Unpacked {
    typename Isa::Int   quants[8];
    typename Isa::Float scale;
    typename Isa::Float other;
};

// out[i]: bytes 4 i to 4 i + 3 of 16 bytes at p of every row. Two levels of interleaving within
// 128-bit lanes are enough, since load_rows has put every fourth row next to each other.
template <class Isa>
INLINE void transpose16(const uint8_t * p, size_t stride, typename Isa::Int * out) {
    const auto a      = Isa::load_rows(p, stride);
    const auto b      = Isa::load_rows(p + stride, stride);
    const auto c      = Isa::load_rows(p + 2 * stride, stride);
    const auto d      = Isa::load_rows(p + 3 * stride, stride);
    const auto ab_low = Isa::unpack_low32(a, b), ab_high = Isa::unpack_high32(a, b);
    const auto cd_low = Isa::unpack_low32(c, d), cd_high = Isa::unpack_high32(c, d);
    out[0] = Isa::unpack_low64(ab_low, cd_low);
    out[1] = Isa::unpack_high64(ab_low, cd_low);
    out[2] = Isa::unpack_low64(ab_high, cd_high);
    out[3] = Isa::unpack_high64(ab_high, cd_high);
}

// The last 4 of 16 bytes at p of every row.
template <class Isa> INLINE typename Isa::Int last_word(const uint8_t * p, size_t stride) {
    const auto a = Isa::load_rows(p, stride);
    const auto b = Isa::load_rows(p + stride, stride);
    const auto c = Isa::load_rows(p + 2 * stride, stride);
    const auto d = Isa::load_rows(p + 3 * stride, stride);
    return Isa::unpack_high64(Isa::unpack_high32(a, b), Isa::unpack_high32(c, d));
}

// 32 bytes at p of every row as 8 words.
template <class Isa>
INLINE void transpose32(const uint8_t * p, size_t stride, typename Isa::Int * out) {
    transpose16<Isa>(p, stride, out);
    transpose16<Isa>(p + 16, stride, out + 4);
}

// 36 bytes at p of every row as 9 words: two blocks of q4_0, or one of q8_0 and the next one's scale.
template <class Isa>
INLINE void transpose36(const uint8_t * p, size_t stride, typename Isa::Int * out) {
    transpose32<Isa>(p, stride, out);
    out[8] = last_word<Isa>(p + 20, stride);
}

// out[i]: the 4 bytes from the middle of word i on
template <class Isa, int n>
INLINE void straddle_all(const typename Isa::Int * words, typename Isa::Int * out) {
    for (int i = 0; i < n; i++) {
        out[i] = Isa::straddle(words[i], words[i + 1]);
    }
}

enum class Other { none, split, minimum };

// Blocks of a float16 scale and 32 nibbles, of which Type::from makes quants.
template <class Type> struct Nibbles {
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int raw[4];
        transpose16<Isa>(p + 2, stride, raw);
        use(Type::template from<Isa>(raw, Isa::load_halves(p, stride)));
    }
    template <class Isa, class Use> INLINE void pair(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int words[9], raw[4];
        transpose36<Isa>(p, stride, words);
        straddle_all<Isa, 4>(words, raw);
        use(Type::template from<Isa>(raw, Isa::low_halves(words[0])));
        use(Type::template from<Isa>(words + 5, Isa::high_halves(words[4])));
    }
};

struct Q4_0 : Nibbles<Q4_0> {
    static constexpr int   type = 2, values = 32, bytes = 18, offset = 8;
    static constexpr bool  wide = false, pairs = true;
    static constexpr Other other = Other::none;

    template <class Isa>
    INLINE Unpacked<Isa> from(const typename Isa::Int * raw, typename Isa::Float scale) {
        Unpacked<Isa> w;
        for (int i = 0; i < 4; i++) {
            w.quants[i]     = Isa::and_bytes(raw[i], 0x0f);
            w.quants[i + 4] = Isa::and_bytes(Isa::template right<4>(raw[i]), 0x0f);
        }
        w.scale = scale;
        return w;
    }
};

// Adds a fifth bit to 32 quants of 4 bits; `fifths` has that of value i of a row in bit i.
template <class Isa> INLINE void add_fifths(Unpacked<Isa> & w, typename Isa::Int fifths) {
    for (auto & quants : w.quants) {
        // bits 0 to 3 go to bit 4 of byte 0 to 3: no two copies of the four meet
        const auto spread = Isa::mul_ints(Isa::and_ints(fifths, 0x0f), 0x02040810);
        quants            = Isa::bits_or(quants, Isa::and_bytes(spread, 0x10));
        fifths            = Isa::template right<4>(fifths);
    }
}

struct Q5_0 {
    static constexpr int   type = 6, values = 32, bytes = 22, offset = 16;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::none;

    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int head[4], raw[4];
        transpose16<Isa>(p, stride, head);
        transpose16<Isa>(p + 6, stride, raw);
        Unpacked<Isa> w = Q4_0::from<Isa>(raw, Isa::low_halves(head[0]));
        add_fifths<Isa>(w, Isa::straddle(head[0], head[1]));
        use(w);
    }
};

// The first word of the blocks of q4_1 and q5_1: a float16 scale, and what is added to the product
// with it, so that less of it is a minimum to take off.
template <class Isa> INLINE void add_least(Unpacked<Isa> & w, typename Isa::Int head) {
    w.scale = Isa::low_halves(head);
    w.other = Isa::sub(Isa::zero(), Isa::high_halves(head));
}

struct Q4_1 {
    static constexpr int   type = 3, values = 32, bytes = 20, offset = 0;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::minimum;

    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int words[5];
        transpose16<Isa>(p, stride, words);
        words[4]        = last_word<Isa>(p + 4, stride);
        Unpacked<Isa> w = Q4_0::from<Isa>(words + 1, Isa::zero());
        add_least<Isa>(w, words[0]);
        use(w);
    }
};

struct Q5_1 {
    static constexpr int   type = 7, values = 32, bytes = 24, offset = 0;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::minimum;

    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int head[4], raw[4];
        transpose16<Isa>(p, stride, head);
        transpose16<Isa>(p + 8, stride, raw);
        Unpacked<Isa> w = Q4_0::from<Isa>(raw, Isa::zero());
        add_least<Isa>(w, head[0]);
        add_fifths<Isa>(w, head[1]);
        use(w);
    }
};

struct Q8_0 {
    static constexpr int   type = 8, values = 32, bytes = 34, offset = 128;
    static constexpr bool  wide = true, pairs = true;
    static constexpr Other other = Other::none;

    template <class Isa>
    INLINE Unpacked<Isa> from(const typename Isa::Int * raw, typename Isa::Float scale) {
        Unpacked<Isa> w;
        for (int i = 0; i < 8; i++) {
            w.quants[i] = Isa::wide_offset ? Isa::xor_bytes(raw[i], 0x80) : raw[i];
        }
        w.scale = scale;
        return w;
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int raw[8];
        transpose32<Isa>(p + 2, stride, raw);
        use(from<Isa>(raw, Isa::load_halves(p, stride)));
    }
    template <class Isa, class Use> INLINE void pair(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int words[9], raw[8];
        transpose36<Isa>(p, stride, words);
        straddle_all<Isa, 8>(words, raw);
        use(from<Isa>(raw, Isa::low_halves(words[0])));
        transpose32<Isa>(p + 36, stride, raw);
        use(from<Isa>(raw, Isa::high_halves(words[8])));
    }
};

// As q4_0, but a quant is the place of its value in a table.
struct IQ4_NL : Nibbles<IQ4_NL> {
    static constexpr int   type = 20, values = 32, bytes = 18, offset = 128;
    static constexpr bool  wide = true, pairs = true;
    static constexpr Other other = Other::none;

    // ggml's kvalues_iq4nl
    static constexpr int8_t table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};

    template <class Isa>
    INLINE Unpacked<Isa> from(const typename Isa::Int * raw, typename Isa::Float scale) {
        Unpacked<Isa> w = Q4_0::from<Isa>(raw, scale);
        for (auto & quants : w.quants) {
            const auto found = Isa::look_up(table, quants);
            quants           = Isa::wide_offset ? Isa::xor_bytes(found, 0x80) : found;
        }
        return w;
    }
};

// A byte of every lane as a float.
template <class Isa, int byte> inline typename Isa::Float byte_of(typename Isa::Int v) {
    return Isa::to_float(Isa::and_ints(Isa::template right<8 * byte>(v), 0xff));
}
template <class Isa, int byte> inline typename Isa::Float signed_byte_of(typename Isa::Int v) {
    return Isa::to_float(Isa::template right_signed<24>(Isa::template left<24 - 8 * byte>(v)));
}

// what begins at bit `from`, at bit `to`
template <class Isa, int from, int to> INLINE typename Isa::Int moved(typename Isa::Int v) {
    if constexpr (from <= to) {
        return Isa::template left<to - from>(v);
    } else {
        return Isa::template right<from - to>(v);
    }
}

template <class Isa> struct Scales {
    typename Isa::Float scale, other;
};

// The header of q4_K and q5_K: two float16, then eight scales and eight minima of 6 bits.
template <class Isa>
INLINE void unpack_k_scales(const uint8_t * p, size_t stride, Scales<Isa> * out) {
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

// Quants of 2 bits with a third one apart, and a scale of 6 bits per 16 values.
struct Q3_K {
    static constexpr int   type = 11, values = 256, bytes = 110, offset = 4;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::split;

    // a byte of every lane, less the 32 that it is stored with
    template <class Isa, int byte> INLINE typename Isa::Float scale_of(typename Isa::Int v) {
        return Isa::sub(byte_of<Isa, byte>(v), Isa::set(32.0f));
    }
    // the 16 scales, of 32 values each: the last 16 bytes hold them, behind two bytes of quants and
    // before their factor
    template <class Isa>
    INLINE void unpack_scales(const uint8_t * p, size_t stride, Scales<Isa> * out) {
        typename Isa::Int words[4], packed[3];
        transpose16<Isa>(p + 94, stride, words);
        straddle_all<Isa, 3>(words, packed);
        const auto d   = Isa::high_halves(words[3]);
        const auto low = [&](int i) {
            const auto four = i < 2 ? packed[i] : Isa::template right<4>(packed[i - 2]);
            return Isa::and_bytes(four, 0x0f);
        };
        const typename Isa::Int scales[4] = {
            Isa::bits_or(low(0), Isa::and_bytes(Isa::template left<4>(packed[2]), 0x30)),
            Isa::bits_or(low(1), Isa::and_bytes(Isa::template left<2>(packed[2]), 0x30)),
            Isa::bits_or(low(2), Isa::and_bytes(packed[2], 0x30)),
            Isa::bits_or(low(3), Isa::and_bytes(Isa::template right<2>(packed[2]), 0x30)),
        };
        for (int i = 0; i < 4; i++) {
            out[2 * i].scale     = Isa::mul(d, scale_of<Isa, 0>(scales[i]));
            out[2 * i].other     = Isa::mul(d, scale_of<Isa, 1>(scales[i]));
            out[2 * i + 1].scale = Isa::mul(d, scale_of<Isa, 2>(scales[i]));
            out[2 * i + 1].other = Isa::mul(d, scale_of<Isa, 3>(scales[i]));
        }
    }
    template <class Isa, int block>
    INLINE Unpacked<Isa> join(const typename Isa::Int * low, const typename Isa::Int * high,
                              const Scales<Isa> * scales) {
        Unpacked<Isa> w;
        for (int i = 0; i < 8; i++) {
            const auto two   = Isa::and_bytes(moved<Isa, 2 * (block % 4), 0>(low[i]), 0x03);
            const auto third = Isa::and_bytes(moved<Isa, block, 2>(high[i]), 0x04);
            w.quants[i]      = Isa::bits_or(two, third);
        }
        w.scale = scales[block].scale;
        w.other = scales[block].other;
        return w;
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        Scales<Isa> scales[8];
        unpack_scales<Isa>(p, stride, scales);
        typename Isa::Int high[8], low[8];
        transpose32<Isa>(p, stride, high);
        transpose32<Isa>(p + 32, stride, low);
        use(join<Isa, 0>(low, high, scales));
        use(join<Isa, 1>(low, high, scales));
        use(join<Isa, 2>(low, high, scales));
        use(join<Isa, 3>(low, high, scales));
        transpose32<Isa>(p + 64, stride, low);
        use(join<Isa, 4>(low, high, scales));
        use(join<Isa, 5>(low, high, scales));
        use(join<Isa, 6>(low, high, scales));
        use(join<Isa, 7>(low, high, scales));
    }
};

struct Q4_K {
    static constexpr int   type = 12, values = 256, bytes = 144, offset = 0;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::minimum;

    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        Scales<Isa> scales[8];
        unpack_k_scales<Isa>(p, stride, scales);
        for (int i = 0; i < 8; i += 2) {
            typename Isa::Int raw[8];
            transpose32<Isa>(p + 16 + 16 * i, stride, raw);
            Unpacked<Isa> w;
            for (int j = 0; j < 8; j++) {
                w.quants[j] = Isa::and_bytes(raw[j], 0x0f);
            }
            w.scale = scales[i].scale;
            w.other = scales[i].other;
            use(w);
            for (int j = 0; j < 8; j++) {
                w.quants[j] = Isa::and_bytes(Isa::template right<4>(raw[j]), 0x0f);
            }
            w.scale = scales[i + 1].scale;
            w.other = scales[i + 1].other;
            use(w);
        }
    }
};

struct Q5_K {
    static constexpr int   type = 13, values = 256, bytes = 176, offset = 0;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::minimum;

    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        Scales<Isa> scales[8];
        unpack_k_scales<Isa>(p, stride, scales);
        typename Isa::Int high[8];
        transpose32<Isa>(p + 16, stride, high);
        for (int i = 0; i < 8; i += 2) {
            typename Isa::Int raw[8];
            transpose32<Isa>(p + 48 + 16 * i, stride, raw);
            Unpacked<Isa> w;
            for (int j = 0; j < 8; j++) {
                const auto fifth = Isa::and_bytes(Isa::template left<4>(high[j]), 0x10);
                w.quants[j]      = Isa::bits_or(Isa::and_bytes(raw[j], 0x0f), fifth);
            }
            w.scale = scales[i].scale;
            w.other = scales[i].other;
            use(w);
            for (int j = 0; j < 8; j++) {
                const auto fifth = Isa::and_bytes(Isa::template left<3>(high[j]), 0x10);
                w.quants[j] =
                    Isa::bits_or(Isa::and_bytes(Isa::template right<4>(raw[j]), 0x0f), fifth);
                high[j] = Isa::template right<2>(high[j]);
            }
            w.scale = scales[i + 1].scale;
            w.other = scales[i + 1].other;
            use(w);
        }
    }
};

struct Q6_K {
    static constexpr int   type = 14, values = 256, bytes = 210, offset = 32;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::split;

    // 32 values whose low bits are in the low (high) half of every byte, and the others in two bits
    template <class Isa, int nibble, int top>
    INLINE Unpacked<Isa> join(const typename Isa::Int * low, const typename Isa::Int * high,
                              const Scales<Isa> & scales) {
        Unpacked<Isa> w;
        for (int i = 0; i < 8; i++) {
            const auto bits = nibble == 0 ? low[i] : Isa::template right<4>(low[i]);
            const auto two  = Isa::and_bytes(moved<Isa, top, 4>(high[i]), 0x30);
            w.quants[i]     = Isa::bits_or(Isa::and_bytes(bits, 0x0f), two);
        }
        w.scale = scales.scale;
        w.other = scales.other;
        return w;
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        Scales<Isa>       scales[8];
        typename Isa::Int head[4];
        transpose16<Isa>(p + 192, stride, head);
        const auto d = Isa::load_halves(p + 208, stride);
        for (int i = 0; i < 4; i++) {
            scales[2 * i].scale     = Isa::mul(d, signed_byte_of<Isa, 0>(head[i]));
            scales[2 * i].other     = Isa::mul(d, signed_byte_of<Isa, 1>(head[i]));
            scales[2 * i + 1].scale = Isa::mul(d, signed_byte_of<Isa, 2>(head[i]));
            scales[2 * i + 1].other = Isa::mul(d, signed_byte_of<Isa, 3>(head[i]));
        }
        // 128 values: four blocks from 64 bytes of low and 32 bytes of high bits
        for (int half = 0; half < 2; half++) {
            const uint8_t *   low = p + 64 * half;
            typename Isa::Int high[8], first[8], second[8];
            transpose32<Isa>(p + 128 + 32 * half, stride, high);
            transpose32<Isa>(low, stride, first);
            transpose32<Isa>(low + 32, stride, second);
            use(join<Isa, 0, 0>(first, high, scales[4 * half]));
            use(join<Isa, 0, 2>(second, high, scales[4 * half + 1]));
            use(join<Isa, 1, 4>(first, high, scales[4 * half + 2]));
            use(join<Isa, 1, 6>(second, high, scales[4 * half + 3]));
        }
    }
};

}  // namespace
