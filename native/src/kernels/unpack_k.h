// The types whose units are 256 values: scales of a few bits each, and one float16 for all of them.
#pragma once

#include "unpack.h"

namespace {

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

// Quants of 2 bits, with a scale and a minimum of 4 bits per 16 values. A quant times its scale is a
// whole number below 46, so the products are those of blocks of 32 that have no scale of their own.
struct Q2_K {
    static constexpr int   type = 10, values = 256, bytes = 84, offset = 0;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::minima;

    template <class Isa> struct Head {
        typename Isa::Int   scales[4];  // 16 bytes: scales below minima
        typename Isa::Float d, dmin;
    };
    template <class Isa, int k> INLINE typename Isa::Float minimum(const Head<Isa> & head) {
        const auto four = Isa::template right<8 * (k % 4) + 4>(head.scales[k / 4]);
        return Isa::mul(head.dmin, Isa::to_float(Isa::and_ints(four, 0x0f)));
    }
    template <class Isa, int block>
    INLINE UnpackedMinima<Isa> join(const typename Isa::Int * raw, const Head<Isa> & head) {
        UnpackedMinima<Isa> w;
        const auto          scales = Isa::template right<16 * (block % 2)>(head.scales[block / 2]);
        const auto          first  = Isa::and_ints(scales, 0x0f);
        const auto          last   = Isa::and_ints(Isa::template right<8>(scales), 0x0f);
        for (int i = 0; i < 8; i++) {
            const auto two = Isa::and_bytes(moved<Isa, 2 * (block % 4), 0>(raw[i]), 0x03);
            w.quants[i] = Isa::mul_ints(two, i < 4 ? first : last);  // of each byte: none carries
        }
        w.scale  = head.d;
        w.other  = minimum<Isa, 2 * block>(head);
        w.second = minimum<Isa, 2 * block + 1>(head);
        return w;
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        Head<Isa> head;
        transpose16<Isa>(p, stride, head.scales);
        const auto halves = last_word<Isa>(p + 68, stride);
        head.d            = Isa::low_halves(halves);
        head.dmin         = Isa::high_halves(halves);
        typename Isa::Int raw[8];
        transpose32<Isa>(p + 16, stride, raw);
        use(join<Isa, 0>(raw, head));
        use(join<Isa, 1>(raw, head));
        use(join<Isa, 2>(raw, head));
        use(join<Isa, 3>(raw, head));
        transpose32<Isa>(p + 48, stride, raw);
        use(join<Isa, 4>(raw, head));
        use(join<Isa, 5>(raw, head));
        use(join<Isa, 6>(raw, head));
        use(join<Isa, 7>(raw, head));
    }
};

// As iq4_nl, with a scale of 6 bits per 32 values: behind the float16 their two high bits each, then
// their four low ones.
struct IQ4_XS {
    static constexpr int   type = 23, values = 256, bytes = 136, offset = IQ4_NL::offset;
    static constexpr bool  wide = true, pairs = false;
    static constexpr Other other = Other::none;

    template <class Isa, int block>
    INLINE typename Isa::Float scale(const typename Isa::Int * head) {
        const auto low = Isa::and_ints(moved<Isa, 4 * block, 0>(head[1]), 0x0f);
        const auto two = Isa::and_ints(moved<Isa, 16 + 2 * block, 4>(head[0]), 0x30);
        const auto six = Isa::to_float(Isa::bits_or(low, two));
        return Isa::mul(Isa::low_halves(head[0]), Isa::sub(six, Isa::set(32.0f)));
    }
    template <class Isa, int block, class Use>
    INLINE void two_blocks(const uint8_t * p, size_t stride, const typename Isa::Int * head,
                           Use use) {
        typename Isa::Int raw[8];
        transpose32<Isa>(p + 8 + 16 * block, stride, raw);
        use(IQ4_NL::from<Isa>(raw, scale<Isa, block>(head)));
        use(IQ4_NL::from<Isa>(raw + 4, scale<Isa, block + 1>(head)));
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int head[4];
        transpose16<Isa>(p, stride, head);
        two_blocks<Isa, 0>(p, stride, head, use);
        two_blocks<Isa, 2>(p, stride, head, use);
        two_blocks<Isa, 4>(p, stride, head, use);
        two_blocks<Isa, 6>(p, stride, head, use);
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
