// How the blocks of each type become vectors whose lanes are rows: eight of unsigned bytes, four
// neighbouring values per lane, and their scales. The layouts are ggml's (ggml-common.h).
#pragma once

#include <type_traits>

#include "kernels.h"

// What is written apart to be read, and must be compiled as one: vectors stay in registers.
#define ALWAYS __attribute__((always_inline))
#define INLINE static inline ALWAYS

namespace {

// What a block has beside a scale: one for its last 16 values, a minimum, or a minimum for either half.
enum class Other { none, split, minimum, minima };

// 32 values of every row of a panel. `other` is the scale of the last 16 values, or the (first) minimum.
template <class Isa> struct Unpacked {
    typename Isa::Int   quants[8];
    typename Isa::Float scale;
    typename Isa::Float other;
};
template <class Isa> struct UnpackedMinima : Unpacked<Isa> {
    typename Isa::Float second;
};
template <class Isa, Other other>
using UnpackedAs = std::conditional_t<other == Other::minima, UnpackedMinima<Isa>, Unpacked<Isa>>;

// Four vectors: within every 128-bit lane, word j of vector i becomes word i of vector j.
template <class Isa> INLINE void transpose_fours(typename Isa::Int * v) {
    const auto ab_low = Isa::unpack_low32(v[0], v[1]), ab_high = Isa::unpack_high32(v[0], v[1]);
    const auto cd_low = Isa::unpack_low32(v[2], v[3]), cd_high = Isa::unpack_high32(v[2], v[3]);
    v[0] = Isa::unpack_low64(ab_low, cd_low);
    v[1] = Isa::unpack_high64(ab_low, cd_low);
    v[2] = Isa::unpack_low64(ab_high, cd_high);
    v[3] = Isa::unpack_high64(ab_high, cd_high);
}

// out[i]: bytes 4 i to 4 i + 3 of 16 bytes at p of every row. Two levels of interleaving within
// 128-bit lanes are enough, since load_rows has put every fourth row next to each other.
template <class Isa>
INLINE void transpose16(const uint8_t * p, size_t stride, typename Isa::Int * out) {
    for (size_t i = 0; i < 4; i++) {
        out[i] = Isa::load_rows(p + i * stride, stride);
    }
    transpose_fours<Isa>(out);
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
template <class Isa, int i = 0>
INLINE void add_fifths(Unpacked<Isa> & w, typename Isa::Int fifths) {
    if constexpr (i < 8) {
        w.quants[i] = Isa::bits_or(w.quants[i], Isa::template bytes_where<i>(fifths, 0x10));
        add_fifths<Isa, i + 1>(w, fifths);
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

}  // namespace
