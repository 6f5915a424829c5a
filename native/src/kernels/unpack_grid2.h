// The types of two bits, whose quants are places in a list of eight values.
#pragma once

#include "unpack_grid3.h"

namespace {

// What all of them have: three sizes, and scales of 4 bits whose unit is an eighth of a float16.
template <class Isa> INLINE typename Isa::Float eighth(const uint8_t * p, size_t stride) {
    return Isa::mul(Isa::load_halves(p, stride), Isa::set(0.125f));
}

// For 32 values two words: places of 8 bits; four times seven signs, and a scale.
struct IQ2_XXS {
    static constexpr int   type = 16, values = 256, bytes = 66, offset = 64;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::none;

    static constexpr Grid<256, 8, offset> grid{inferos::kernels::kGridIq2Xxs,
                                               inferos::kernels::kSizesIq2};

    template <class Isa>
    INLINE Unpacked<Isa> join(const typename Isa::Int * words, typename Isa::Float d) {
        Unpacked<Isa> w;
        const auto    signs = eight_signs<Isa>(spread<Isa, 0, 7>(words[1]));
        look_up_eights<Isa>(grid, words[0], words[0], signs, w.quants);
        w.scale = Isa::mul(d, odd_scale<Isa, 28>(words[1]));
        return w;
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        const auto d = eighth<Isa>(p, stride);
        for (int half = 0; half < 2; half++) {
            typename Isa::Int words[8];
            transpose32<Isa>(p + 2 + 32 * half, stride, words);
            use(join<Isa>(words, d));
            use(join<Isa>(words + 2, d));
            use(join<Isa>(words + 4, d));
            use(join<Isa>(words + 6, d));
        }
    }
};

// 16 bits for 8 values: a place of 9 bits and seven signs; then a scale per 16 values.
struct IQ2_XS {
    static constexpr int   type = 17, values = 256, bytes = 74, offset = 64;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::split;

    static constexpr Grid<512, 8, offset> grid{inferos::kernels::kGridIq2Xs,
                                               inferos::kernels::kSizesIq2};

    // the low (high) bytes of four halves of words
    template <class Isa>
    INLINE typename Isa::Int even_bytes(typename Isa::Int a, typename Isa::Int b) {
        if constexpr (Isa::has_byte_tables) {
            return Isa::even_bytes(a, b);
        } else {
            const auto low  = Isa::bits_or(Isa::and_ints(a, 0xff),
                                           Isa::and_ints(Isa::template right<8>(a), 0xff00));
            const auto high = Isa::bits_or(Isa::and_ints(Isa::template left<16>(b), 0xff0000),
                                           Isa::and_ints(Isa::template left<8>(b), ~0xffffff));
            return Isa::bits_or(low, high);
        }
    }
    template <class Isa>
    INLINE typename Isa::Int odd_bytes(typename Isa::Int a, typename Isa::Int b) {
        if constexpr (Isa::has_byte_tables) {
            return Isa::odd_bytes(a, b);
        } else {
            return even_bytes<Isa>(Isa::template right<8>(a), Isa::template right<8>(b));
        }
    }
    template <class Isa, int block>
    INLINE Unpacked<Isa> join(const typename Isa::Int * words, const typename Isa::Int * scales,
                              typename Isa::Float d) {
        Unpacked<Isa> w;
        const auto    high  = odd_bytes<Isa>(words[0], words[1]);
        const auto    signs = eight_signs<Isa>(Isa::template right<1>(high));
        look_up_eights<Isa>(grid, even_bytes<Isa>(words[0], words[1]), high, signs, w.quants);
        constexpr int at = 8 * (block % 4);
        w.scale          = Isa::mul(d, odd_scale<Isa, at>(scales[block / 4]));
        w.other          = Isa::mul(d, odd_scale<Isa, at + 4>(scales[block / 4]));
        return w;
    }
    template <class Isa, int first, class Use>
    INLINE void half(const uint8_t * p, size_t stride, const typename Isa::Int * scales,
                     typename Isa::Float d, Use use) {
        typename Isa::Int words[8];
        transpose32<Isa>(p + 2 + 8 * first, stride, words);
        use(join<Isa, first>(words, scales, d));
        use(join<Isa, first + 1>(words + 2, scales, d));
        use(join<Isa, first + 2>(words + 4, scales, d));
        use(join<Isa, first + 3>(words + 6, scales, d));
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int tail[4];
        transpose16<Isa>(p + 58, stride, tail);
        const auto d = eighth<Isa>(p, stride);
        half<Isa, 0>(p, stride, tail + 2, d, use);
        half<Isa, 4>(p, stride, tail + 2, d, use);
    }
};

// Places of 10 bits, two of them apart, signs, and a scale per 16 values.
struct IQ2_S {
    static constexpr int   type = 22, values = 256, bytes = 82, offset = 64;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::split;

    static constexpr Grid<1024, 8, offset> grid{inferos::kernels::kGridIq2S,
                                                inferos::kernels::kSizesIq2};

    // tail: two words of the places' high bits, a byte per block, and two of scales
    template <class Isa, int block>
    INLINE Unpacked<Isa> join(typename Isa::Int places, typename Isa::Int signs,
                              const typename Isa::Int * tail, typename Isa::Float d) {
        Unpacked<Isa> w;
        constexpr int at = 8 * (block % 4);
        look_up_eights<Isa>(grid, places, spread<Isa, at, 2>(tail[block / 4]), signs, w.quants);
        w.scale = Isa::mul(d, odd_scale<Isa, at>(tail[2 + block / 4]));
        w.other = Isa::mul(d, odd_scale<Isa, at + 4>(tail[2 + block / 4]));
        return w;
    }
    template <class Isa, int first, class Use>
    INLINE void half(const uint8_t * p, size_t stride, const typename Isa::Int * tail,
                     typename Isa::Float d, Use use) {
        typename Isa::Int places[4], signs[4];
        transpose16<Isa>(p + 2 + 4 * first, stride, places);
        transpose16<Isa>(p + 34 + 4 * first, stride, signs);
        use(join<Isa, first>(places[0], signs[0], tail, d));
        use(join<Isa, first + 1>(places[1], signs[1], tail, d));
        use(join<Isa, first + 2>(places[2], signs[2], tail, d));
        use(join<Isa, first + 3>(places[3], signs[3], tail, d));
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int tail[4];
        transpose16<Isa>(p + 66, stride, tail);
        const auto d = eighth<Isa>(p, stride);
        half<Isa, 0>(p, stride, tail, d, use);
        half<Isa, 4>(p, stride, tail, d, use);
    }
};

}  // namespace
