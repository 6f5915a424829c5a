// The types of three bits whose quants are places in a list of four values.
#pragma once

#include "unpack_grid.h"

namespace {

// Places of 9 bits, the ninth apart, and a scale of 4 bits per 32 values.
struct IQ3_S {
    static constexpr int   type = 21, values = 256, bytes = 110, offset = 16;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::none;

    static constexpr Grid<512, 4, offset> grid{inferos::kernels::kGridIq3S,
                                               inferos::kernels::kSizesIq3S};

    // What the blocks have in common: words 0 and 1 are a ninth bit of each place, a byte per block.
    template <class Isa> struct Head {
        typename Isa::Int   ninths[2], scales;
        typename Isa::Float d;
    };
    template <class Isa, int block>
    INLINE Unpacked<Isa> join(const typename Isa::Int * places, const Head<Isa> & head,
                              typename Isa::Int signs) {
        Unpacked<Isa> w;
        const auto    ninths = Isa::template right<8 * (block % 4)>(head.ninths[block / 4]);
        look_up_fours<Isa, 0>(grid, places[0], ninths, signs, w.quants);
        look_up_fours<Isa, 1>(grid, places[1], ninths, signs, w.quants + 4);
        w.scale = Isa::mul(head.d, odd_scale<Isa, 4 * block>(head.scales));
        return w;
    }
    // blocks of 128 values
    template <class Isa, int first, class Use>
    INLINE void half(const uint8_t * p, size_t stride, const Head<Isa> & head, Use use) {
        typename Isa::Int places[8], signs[4];
        transpose32<Isa>(p + 2 + 8 * first, stride, places);
        transpose16<Isa>(p + 74 + 4 * first, stride, signs);
        use(join<Isa, first>(places, head, signs[0]));
        use(join<Isa, first + 1>(places + 2, head, signs[1]));
        use(join<Isa, first + 2>(places + 4, head, signs[2]));
        use(join<Isa, first + 3>(places + 6, head, signs[3]));
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        typename Isa::Int words[4];
        transpose16<Isa>(p + 66, stride, words);
        const Head<Isa> head = {
            {words[0], words[1]}, last_word<Isa>(p + 94, stride), Isa::load_halves(p, stride)};
        half<Isa, 0>(p, stride, head, use);
        half<Isa, 4>(p, stride, head, use);
    }
};

// Places of 8 bits, then for 32 values a word each: four times seven signs, and a scale of 4 bits.
struct IQ3_XXS {
    static constexpr int   type = 18, values = 256, bytes = 98, offset = 64;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::none;

    static constexpr Grid<256, 4, offset> grid{inferos::kernels::kGridIq3Xxs,
                                               inferos::kernels::kSizesIq3Xxs};

    template <class Isa>
    INLINE Unpacked<Isa> join(const typename Isa::Int * places, typename Isa::Int word,
                              typename Isa::Float d) {
        Unpacked<Isa> w;
        const auto    signs = eight_signs<Isa>(spread<Isa, 0, 7>(word));
        look_up_fours<Isa, 0>(grid, places[0], word, signs, w.quants);
        look_up_fours<Isa, 1>(grid, places[1], word, signs, w.quants + 4);
        w.scale = Isa::mul(d, odd_scale<Isa, 28>(word));
        return w;
    }
    template <class Isa, class Use> INLINE void unit(const uint8_t * p, size_t stride, Use use) {
        const auto d = Isa::mul(Isa::load_halves(p, stride), Isa::set(0.25f));
        for (int half = 0; half < 2; half++) {
            typename Isa::Int places[8], words[4];
            transpose32<Isa>(p + 2 + 32 * half, stride, places);
            transpose16<Isa>(p + 66 + 16 * half, stride, words);
            use(join<Isa>(places, words[0], d));
            use(join<Isa>(places + 2, words[1], d));
            use(join<Isa>(places + 4, words[2], d));
            use(join<Isa>(places + 6, words[3], d));
        }
    }
};

}  // namespace
