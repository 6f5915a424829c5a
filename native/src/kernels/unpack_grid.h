// The types whose quants are places in a list: four values of a row each, with their signs apart.
#pragma once

#include "grids.h"
#include "unpack_k.h"

namespace {

// A list of places of 9 bits, for both ways to look them up.
struct Grid {
    alignas(inferos::kernels::kLine) uint32_t words[512];  // four bytes, 16 more than each value
    // the octal digits of the first two values at bits 1 and 4, and of the others
    alignas(inferos::kernels::kLine) uint8_t halves[2][512];

    explicit constexpr Grid(const uint16_t * octal) : words(), halves() {
        for (int i = 0; i < 512; i++) {
            for (int j = 0; j < 4; j++) {
                const uint32_t digit = octal[i] >> 3 * j & 7u;
                words[i] |= (2 * digit + 17) << 8 * j;
                halves[j / 2][i] =
                    static_cast<uint8_t>(halves[j / 2][i] | digit << (1 + 3 * (j % 2)));
            }
        }
    }
};

// found[j]: the word at the place in byte j of every lane, whose ninth bit is bit 4 half + j of ninths.
template <class Isa, int half>
INLINE void look_up_places(const Grid & grid, typename Isa::Int places, typename Isa::Int ninths,
                           typename Isa::Int * found) {
    if constexpr (Isa::has_byte_tables) {
        Isa::template look_up_places<half>(grid.halves, places, ninths, found);
    } else {
        const auto at = [&](auto low, auto ninth) ALWAYS {
            return Isa::look_up_words(
                grid.words, Isa::bits_or(Isa::and_ints(low, 0xff), Isa::and_ints(ninth, 0x100)));
        };
        found[0] = at(places, moved<Isa, 4 * half, 8>(ninths));
        found[1] = at(Isa::template right<8>(places), moved<Isa, 4 * half + 1, 8>(ninths));
        found[2] = at(Isa::template right<16>(places), moved<Isa, 4 * half + 2, 8>(ninths));
        found[3] = at(Isa::template right<24>(places), moved<Isa, 4 * half + 3, 8>(ninths));
    }
}

// Places of 9 bits, the ninth apart, and a scale of 4 bits per 32 values.
struct IQ3_S {
    static constexpr int   type = 21, values = 256, bytes = 110, offset = 16;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::none;

    static constexpr Grid grid{inferos::kernels::kGridIq3S};

    // What the blocks have in common: words 0 and 1 are a ninth bit of each place, a byte per block.
    template <class Isa> struct Head {
        typename Isa::Int   ninths[2], scales;
        typename Isa::Float d;
    };
    // 16 + n for an odd n below 16 becomes 16 - n where the sign's bit is set
    template <class Isa, int i = 0>
    INLINE void set_signs(typename Isa::Int * quants, typename Isa::Int signs) {
        if constexpr (i < 8) {
            quants[i] = Isa::bits_xor(quants[i], Isa::template bytes_where<i>(signs, 0x1e));
            set_signs<Isa, i + 1>(quants, signs);
        }
    }
    template <class Isa, int block>
    INLINE Unpacked<Isa> join(const typename Isa::Int * places, const Head<Isa> & head,
                              typename Isa::Int signs) {
        Unpacked<Isa> w;
        const auto    ninths = Isa::template right<8 * (block % 4)>(head.ninths[block / 4]);
        look_up_places<Isa, 0>(grid, places[0], ninths, w.quants);
        look_up_places<Isa, 1>(grid, places[1], ninths, w.quants + 4);
        set_signs<Isa>(w.quants, signs);
        const auto four = Isa::and_ints(Isa::template right<4 * block>(head.scales), 0x0f);
        const auto odd  = Isa::add_ints(Isa::add_ints(four, four), 1);
        w.scale         = Isa::mul(head.d, Isa::to_float(odd));
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

}  // namespace
