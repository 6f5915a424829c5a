// What the types have in common whose quants are places in a list of values, with their signs apart.
#pragma once

#include "grids.h"
#include "unpack_k.h"

namespace {

// A list of n places of so many values, for both ways to look them up.
template <int n, int n_values, int offset> struct Grid {
    static constexpr int n_words = n_values / 4, n_bits = n_values == 4 ? 3 : 2;
    static constexpr int per_half = n_values / 2;

    // four bytes, `offset` more than the values
    alignas(inferos::kernels::kLine) uint32_t words[n_words][n];
    // which size the first half of the values have and which the others, n_bits each
    alignas(inferos::kernels::kLine) uint8_t halves[2][n];
    // what the size at each place in six of these bits is, `offset` more
    alignas(inferos::kernels::kLine) uint8_t sizes[6 / n_bits][64];

    constexpr Grid(const uint16_t * list, const int8_t * values) : words(), halves(), sizes() {
        constexpr uint32_t digits = (1u << n_bits) - 1;
        for (uint32_t i = 0; i < 64; i++) {
            for (int j = 0; j < 6 / n_bits; j++) {
                sizes[j][i] = static_cast<uint8_t>(offset + values[i >> n_bits * j & digits]);
            }
        }
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < n_values; j++) {
                const uint32_t digit = list[i] >> n_bits * j & digits;
                words[j / 4][i] |= static_cast<uint32_t>(sizes[0][digit]) << 8 * (j % 4);
                uint8_t & half = halves[j / per_half][i];
                half           = static_cast<uint8_t>(half | digit << n_bits * (j % per_half));
            }
        }
    }
};

// Byte j of every lane: what begins at bit `first + step j` of it. Only the low bits are known, up to
// where the lane ends.
template <class Isa, int first, int step> INLINE typename Isa::Int spread(typename Isa::Int v) {
    if constexpr (Isa::has_byte_tables) {
        return Isa::template spread<first, step>(v);
    } else {
        const auto low = Isa::bits_or(Isa::and_ints(moved<Isa, first, 0>(v), 0xff),
                                      Isa::and_ints(moved<Isa, first + step, 8>(v), 0xff00));
        const auto high =
            Isa::bits_or(Isa::and_ints(moved<Isa, first + 2 * step, 16>(v), 0xff0000),
                         Isa::and_ints(moved<Isa, first + 3 * step, 24>(v), ~0xffffff));
        return Isa::bits_or(low, high);
    }
}

// Turns offset + n into offset - n where the bit of a value is set, that of value 4 i + j in bit 4 i + j
// of a lane.
template <class Isa, int offset, int i, int end>
INLINE void set_signs(typename Isa::Int * quants, typename Isa::Int signs) {
    if constexpr (i < end) {
        *quants = Isa::template taken_from<i>(*quants, signs, 2 * offset);
        set_signs<Isa, offset, i + 1, end>(quants + 1, signs);
    }
}

// found[j]: the four values at the place in byte j of every lane, `offset` more, or these 16 in the
// order that the instruction set's columns have. The ninth bit of places,
// if the list has so many, is bit 4 half + j of ninths, and the values' signs begin at bit 16 half.
template <class Isa, int half, int n, int offset>
INLINE void look_up_fours(const Grid<n, 4, offset> & grid, typename Isa::Int places,
                          typename Isa::Int ninths, typename Isa::Int signs,
                          typename Isa::Int * found) {
    if constexpr (Isa::has_byte_tables) {
        Isa::template look_up_fours<half>(grid, places, ninths, signs, found);
    } else {
        const auto at = [&](auto low, auto ninth) ALWAYS {
            auto place = Isa::and_ints(low, 0xff);
            if constexpr (n > 256) {
                place = Isa::bits_or(place, Isa::and_ints(ninth, 0x100));
            }
            return Isa::look_up_words(grid.words[0], place);
        };
        found[0] = at(places, moved<Isa, 4 * half, 8>(ninths));
        found[1] = at(Isa::template right<8>(places), moved<Isa, 4 * half + 1, 8>(ninths));
        found[2] = at(Isa::template right<16>(places), moved<Isa, 4 * half + 2, 8>(ninths));
        found[3] = at(Isa::template right<24>(places), moved<Isa, 4 * half + 3, 8>(ninths));
        set_signs<Isa, offset, 4 * half, 4 * half + 4>(found, signs);
    }
}

// found[2 j] and found[2 j + 1]: the eight values at the place in byte j of every lane, `offset` more.
// Byte j of `high` has the place's ninth and tenth bit as its lowest, as many as the list needs.
template <class Isa, int n, int offset>
INLINE void look_up_eights(const Grid<n, 8, offset> & grid, typename Isa::Int low,
                           typename Isa::Int high, typename Isa::Int signs,
                           typename Isa::Int * found) {
    if constexpr (Isa::has_byte_tables) {
        Isa::look_up_eights(grid, low, high, signs, found);
    } else {
        const auto at = [&](auto eight, auto more, auto * words) ALWAYS {
            auto place = Isa::and_ints(eight, 0xff);
            if constexpr (n > 256) {
                place = Isa::bits_or(place, Isa::and_ints(more, n - 256));
            }
            words[0] = Isa::look_up_words(grid.words[0], place);
            words[1] = Isa::look_up_words(grid.words[1], place);
        };
        at(low, Isa::template left<8>(high), found);
        at(Isa::template right<8>(low), high, found + 2);
        at(Isa::template right<16>(low), Isa::template right<8>(high), found + 4);
        at(Isa::template right<24>(low), Isa::template right<16>(high), found + 6);
        set_signs<Isa, offset, 0, 8>(found, signs);
    }
}

// Seven signs in the low bits of every byte, and the eighth that makes an even number of them.
template <class Isa> INLINE typename Isa::Int eight_signs(typename Isa::Int sevens) {
    if constexpr (Isa::has_byte_tables) {
        return Isa::eight_signs(sevens);
    } else {
        // the top bit: whether a half of a byte has an odd number
        constexpr int8_t odd[16] = {0,    -128, -128, 0,    -128, 0,    0,    -128,
                                    -128, 0,    0,    -128, 0,    -128, -128, 0};
        const auto       seven   = Isa::and_bytes(sevens, 0x7f);
        const auto       low     = Isa::look_up(odd, Isa::and_bytes(seven, 0x0f));
        const auto high = Isa::look_up(odd, Isa::and_bytes(Isa::template right<4>(seven), 0x0f));
        return Isa::bits_xor(seven, Isa::bits_xor(low, high));
    }
}

// 2 n + 1 for the n of 4 bits from bit `from` of every lane
template <class Isa, int from> INLINE typename Isa::Float odd_scale(typename Isa::Int v) {
    const auto twice = Isa::and_ints(moved<Isa, from, 1>(v), 0x1e);
    return Isa::to_float(Isa::add_ints(twice, 1));
}

}  // namespace
