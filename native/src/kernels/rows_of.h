// What each type's blocks become where rows are read a few at a time: 16 sums, each in a 128-bit lane of
// its own. unpack.h and unpack_k.h have the same blocks with rows as lanes.
#pragma once

#include "unpack_k.h"

namespace {

using inferos::kernels::kLine;
using inferos::kernels::kRowGroup;

// The place of a sum, as add_across orders them: 0, 4, 8, 12, 1, 5 and so on
constexpr int place_of(int sum) {
    return sum / 4 + 4 * (sum % 4);
}

// A group of a row: kRowGroup dot products, without starts, and their scales. Dot product 4 i + k is the sum
// of 128-bit lane k of parts[i].
template <class Isa> struct RowSums {
    typename Isa::Int   parts[4];
    typename Isa::Float scales;  // in the order of place_of
};

// For each type:
//     units                a group has
//     lines                times that between() runs in read(), about once for every line of memory
//     at_once              rows that are read side by side: 2, 4 or 8
//     column(sum, half)    where a column's quants of a sum go, the first or the last 16
template <class W> struct RowOf {
    static constexpr bool is_read = false;
};

template <class Isa, class W> constexpr bool reads_rows() {
    return Isa::lanes == kRowGroup && RowOf<W>::is_read;
}

// Word i of 128-bit lane k: the sum of that lane of vector i
template <class Isa>
INLINE typename Isa::Int add_across(typename Isa::Int a, typename Isa::Int b, typename Isa::Int c,
                                    typename Isa::Int d) {
    const auto ab = Isa::add_ints(Isa::unpack_low32(a, b), Isa::unpack_high32(a, b));
    const auto cd = Isa::add_ints(Isa::unpack_low32(c, d), Isa::unpack_high32(c, d));
    return Isa::add_ints(Isa::unpack_low64(ab, cd), Isa::unpack_high64(ab, cd));
}

// Pairs of lanes added: those of a, then those of b
template <class Isa> INLINE typename Isa::Int add_pairs(typename Isa::Int a, typename Isa::Int b) {
    return Isa::add_ints(Isa::even_lanes(a, b), Isa::odd_lanes(a, b));
}

template <class Isa>
INLINE typename Isa::Int dots_of(typename Isa::Int quants, const uint8_t * column) {
    return Isa::template dot<true>(typename Isa::Int{}, quants, Isa::load(column));
}

// 16 blocks of q4_0 in four lines of memory and half of a fifth: which halves of lines i and i + 1 are the
// quants of blocks 4 i to 4 i + 3, and where in its line the scale of each sum is.
struct Q4Places {
    static constexpr int n_lines = 4, halves = 9;  // of a block
    alignas(64) uint16_t quants[n_lines][32];
    alignas(64) uint16_t scale[32];
    uint32_t in_line[n_lines + 1];  // which sums' scales

    constexpr Q4Places() : quants(), scale(), in_line() {
        for (int i = 0; i < n_lines; i++) {
            for (int j = 0; j < 32; j++) {
                quants[i][j] = static_cast<uint16_t>(halves * (4 * i + j / 8) + 1 + j % 8 - 32 * i);
            }
        }
        for (int block = 0; block < kRowGroup; block++) {
            const int at           = halves * block;
            scale[place_of(block)] = static_cast<uint16_t>(at % 32);
            in_line[at / 32] |= 1u << place_of(block);
        }
    }
};

template <> struct RowOf<Q4_0> {
    static constexpr bool is_read = true;
    static constexpr int  units = 16, lines = 4, at_once = 4;

    static constexpr int column(int block, int half) {
        return 128 * (block / 4) + 64 * half + 16 * (block % 4);
    }

    template <class Isa, class Between>
    INLINE RowSums<Isa> read(const uint8_t * p, const uint8_t * quants, Between between) {
        static constexpr Q4Places places;
        typename Isa::Int         lines[Q4Places::n_lines + 1], scales = {};
        for (int i = 0; i < Q4Places::n_lines; i++) {
            lines[i] = Isa::load(p + kLine * static_cast<size_t>(i));
        }
        lines[Q4Places::n_lines] = Isa::load_lower(p + kLine * Q4Places::n_lines);
        RowSums<Isa> sums;
        for (int i = 0; i < 4; i++, quants += 128) {
            const auto raw = Isa::halves_at(lines[i], lines[i + 1], places.quants[i]);
            between();
            const auto low = dots_of<Isa>(Isa::and_bytes(raw, 0x0f), quants);
            sums.parts[i]  = Isa::template dot<true>(
                low, Isa::and_bytes(Isa::template right<4>(raw), 0x0f), Isa::load(quants + 64));
        }
        for (int i = 0; i <= Q4Places::n_lines; i++) {
            scales = Isa::put_halves(scales, places.in_line[i], lines[i], places.scale);
        }
        sums.scales = Isa::first_halves(scales);
        return sums;
    }
};

template <> struct RowOf<Q8_0> {
    static constexpr bool is_read = true;
    static constexpr int  units = 16, lines = 8, at_once = 2;

    static constexpr int column(int block, int half) { return 32 * block + 16 * half; }

    // In pieces, which cross fewer lines than whole vectors: nine vectors, as q4_0 has five, take fewer
    // instructions, and were slower by a tenth where memory is the limit.
    template <class Isa, class Between>
    INLINE RowSums<Isa> read(const uint8_t * p, const uint8_t * quants, Between between) {
        // the scales of a pair of blocks, in every 128-bit lane
        alignas(64) static constexpr uint16_t places[32] = {0, 0, 0, 0, 17, 17, 17, 17,
                                                            0, 0, 0, 0, 17, 17, 17, 17};
        RowSums<Isa>                          sums;
        typename Isa::Int                     scales = {};
        for (int i = 0; i < 4; i++) {
            typename Isa::Int pairs[2];
            for (int j = 0; j < 2; j++, p += 2 * Q8_0::bytes, quants += 64) {
                const auto heads = Isa::load(p);
                const auto raw   = Isa::load_pair(p + 2, p + 2 + Q8_0::bytes);
                between();
                pairs[j] = dots_of<Isa>(Isa::xor_bytes(raw, 0x80), quants);
                scales   = Isa::put_halves(scales, 0x11u << (i + 8 * j), heads, places);
            }
            sums.parts[i] = add_pairs<Isa>(pairs[0], pairs[1]);
        }
        sums.scales = Isa::first_halves(scales);
        return sums;
    }
};

struct Q6Places {
    alignas(16) uint8_t scales[kRowGroup];

    constexpr Q6Places() : scales() {
        for (int sum = 0; sum < kRowGroup; sum++) {
            scales[place_of(sum)] = static_cast<uint8_t>(sum);
        }
    }
};

// A unit is a group: its sums are of 16 values.
template <> struct RowOf<Q6_K> {
    static constexpr bool is_read = true;
    static constexpr int  units = 1, lines = 3, at_once = 8;

    static constexpr int column(int sum, int) { return 16 * sum; }

    template <class Isa, class Between>
    INLINE RowSums<Isa> read(const uint8_t * p, const uint8_t * quants, Between between) {
        static constexpr Q6Places places;
        RowSums<Isa>              sums;
        for (int i = 0; i < 2; i++, quants += 128) {
            const auto low  = Isa::load(p + 64 * i);
            const auto high = Isa::load_pair(p + 128 + 32 * i, p + 128 + 32 * i);
            between();
            // two bits each: of blocks 0 and 1, then of 2 and 3
            const auto first  = Isa::and_bytes(Isa::template left_by<4, 2>(high), 0x30);
            const auto second = Isa::and_bytes(Isa::template right_by<0, 2>(high), 0x30);
            const auto up     = Isa::and_bytes(Isa::template right<4>(low), 0x0f);
            sums.parts[2 * i] =
                dots_of<Isa>(Isa::bits_or(Isa::and_bytes(low, 0x0f), first), quants);
            sums.parts[2 * i + 1] = dots_of<Isa>(Isa::bits_or(up, second), quants + 64);
        }
        between();
        sums.scales = Isa::mul(Isa::half(p + 208), Isa::signed_bytes_at(p + 192, places.scales));
        return sums;
    }
};

}  // namespace
