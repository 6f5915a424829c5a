// The types whose quants are places in a list: four values of a row each, with their signs apart.
#pragma once

#include "grids.h"
#include "unpack_k.h"

namespace {

// The lists' entries as words of four bytes, 16 more than each value.
template <int n> struct GridWords {
    alignas(inferos::kernels::kLine) uint32_t words[n];

    explicit constexpr GridWords(const uint16_t * octal) : words() {
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < 4; j++) {
                const uint32_t value = 2u * (octal[i] >> 3 * j & 7u) + 17u;
                words[i] |= value << 8 * j;
            }
        }
    }
};

// Places of 9 bits, the ninth apart, and a scale of 4 bits per 32 values.
struct IQ3_S {
    static constexpr int   type = 21, values = 256, bytes = 110, offset = 16;
    static constexpr bool  wide = false, pairs = false;
    static constexpr Other other = Other::none;

    static constexpr GridWords<512> grid{inferos::kernels::kGridIq3S};

    // What the blocks have in common: words 0 and 1 are a ninth bit of each place, a byte per block.
    template <class Isa> struct Head {
        typename Isa::Int   ninths[2], scales;
        typename Isa::Float d;
    };
    // value i of the block, from its places and the signs of its values
    template <class Isa, int block, int i>
    INLINE typename Isa::Int quants(const typename Isa::Int * places, const Head<Isa> & head,
                                    typename Isa::Int signs) {
        const auto low = Isa::and_ints(Isa::template right<8 * (i % 4)>(places[i / 4]), 0xff);
        const auto ninth =
            Isa::and_ints(moved<Isa, 8 * (block % 4) + i, 8>(head.ninths[block / 4]), 256);
        const auto found = Isa::look_up_words(grid.words, Isa::bits_or(low, ninth));
        // 16 + n for an odd n below 16 becomes 16 - n
        return Isa::bits_xor(found, Isa::template bytes_where<i>(signs, 0x1e));
    }
    template <class Isa, int block>
    INLINE Unpacked<Isa> join(const typename Isa::Int * places, const Head<Isa> & head,
                              typename Isa::Int signs) {
        Unpacked<Isa> w;
        w.quants[0]     = quants<Isa, block, 0>(places, head, signs);
        w.quants[1]     = quants<Isa, block, 1>(places, head, signs);
        w.quants[2]     = quants<Isa, block, 2>(places, head, signs);
        w.quants[3]     = quants<Isa, block, 3>(places, head, signs);
        w.quants[4]     = quants<Isa, block, 4>(places, head, signs);
        w.quants[5]     = quants<Isa, block, 5>(places, head, signs);
        w.quants[6]     = quants<Isa, block, 6>(places, head, signs);
        w.quants[7]     = quants<Isa, block, 7>(places, head, signs);
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
