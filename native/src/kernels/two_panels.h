// Two unpacked panels against a tile of columns: a word of a column is loaded once for both, where loads
// are what a single panel waits for.
#pragma once

#include "panel.h"

namespace {

using inferos::kernels::kLeastOfTwo;
using inferos::kernels::kMostOfTwo;

// sums[p][c] += scale * column_scale[c] * (quants . column[c]) for both, of the vectors first to end - 1
template <class Isa, class W, int C, int first, int end>
INLINE void add_dots_of_two(const typename Isa::Int (*quants)[8],
                            const typename Isa::Float * scales, const uint8_t * block,
                            const uint8_t * starts, int c, typename Isa::Float (*sums)[C]) {
    const auto start = needs_start<Isa, W>() ? Isa::broadcast(starts + 4 * c) : typename Isa::Int{};
    typename Isa::Int dots[2] = {start, start};
    for (int i = first; i < end; i++) {
        auto word = Isa::broadcast(block + kBlock * c + 4 * i);
        Isa::forget(word);  // else it is loaded for each
        for (int p = 0; p < 2; p++) {
            dots[p] = Isa::template dot<W::wide>(dots[p], quants[p][i], word);
        }
    }
    const auto scale = Isa::broadcast_float(block + kBlock * C + 4 * c);
    for (int p = 0; p < 2; p++) {
        sums[p][c] = Isa::fma(Isa::to_float(dots[p]), Isa::mul(scales[p], scale), sums[p][c]);
    }
}

// As add_block, to the bit.
template <class Isa, class W, int C>
INLINE void add_block_of_two(const UnpackedAs<Isa, W::other> & a,
                             const UnpackedAs<Isa, W::other> & b, const uint8_t * block,
                             typename Isa::Float (*sums)[C]) {
    const uint8_t *     starts = block + (kBlock + 4) * C;
    typename Isa::Int   quants[2][8];
    typename Isa::Float scales[2] = {a.scale, b.scale};
    for (int i = 0; i < 8; i++) {
        quants[0][i] = a.quants[i];
        quants[1][i] = b.quants[i];
    }
#pragma GCC unroll 8  // or the compiler keeps the sums in memory
    for (int c = 0; c < C; c++) {
        if constexpr (W::other == Other::split) {
            const typename Isa::Float others[2] = {a.other, b.other};
            add_dots_of_two<Isa, W, C, 0, 4>(quants, scales, block, starts, c, sums);
            add_dots_of_two<Isa, W, C, 4, 8>(quants, others, block, starts + 4 * C, c, sums);
        } else {
            add_dots_of_two<Isa, W, C, 0, 8>(quants, scales, block, starts, c, sums);
        }
        if constexpr (W::other == Other::minimum || W::other == Other::minima) {
            const auto sum = Isa::broadcast_float(starts + 4 * (2 * C + c));
            sums[0][c]     = Isa::fnma(a.other, sum, sums[0][c]);
            sums[1][c]     = Isa::fnma(b.other, sum, sums[1][c]);
        }
        if constexpr (W::other == Other::minima) {
            const auto sum = Isa::broadcast_float(starts + 4 * (C + c));
            sums[0][c]     = Isa::fnma(a.second, sum, sums[0][c]);
            sums[1][c]     = Isa::fnma(b.second, sum, sums[1][c]);
        }
    }
}

template <class Isa, class W, int C>
void many_of_two(const uint8_t * unpacked, size_t panel_bytes, int64_t n_blocks,
                 const uint8_t * tile, float * out, size_t out_stride, bool first, Fetch * fetch) {
    const auto * a  = reinterpret_cast<const UnpackedAs<Isa, W::other> *>(unpacked);
    const auto * b  = reinterpret_cast<const UnpackedAs<Isa, W::other> *>(unpacked + panel_bytes);
    const auto   at = [&](int p, int c) {
        return out + static_cast<size_t>(c) * out_stride + p * Isa::lanes;
    };
    typename Isa::Float sums[2][C];
    for (int p = 0; p < 2; p++) {
        for (int c = 0; c < C; c++) {
            sums[p][c] = first ? Isa::zero() : Isa::load_floats(at(p, c));
        }
    }
    Fetch next = *fetch;
    for (int64_t i = 0; i < n_blocks; i++) {
        next.run(1);
        add_block_of_two<Isa, W, C>(a[i], b[i], tile, sums);
        tile += C * kColumnBytes;
    }
    *fetch = next;
    for (int p = 0; p < 2; p++) {
        for (int c = 0; c < C; c++) {
            Isa::store_floats(at(p, c), sums[p][c]);
        }
    }
}

}  // namespace
