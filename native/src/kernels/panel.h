// A panel of rows against a tile of columns, for any instruction set and type of weights.
#pragma once

#include "unpack_grid2.h"

namespace {

using inferos::kernels::Fetch;
using inferos::kernels::fetch_line;
using inferos::kernels::kAskedTwice;
using inferos::kernels::kBlock;
using inferos::kernels::kColumnBytes;
using inferos::kernels::kLine;
using inferos::kernels::kTile;

template <class Isa, class W> constexpr bool needs_start() {
    return W::offset != 0 && (!W::wide || Isa::wide_offset);
}

// sums[c] += scale * column_scale[c] * (quants . column[c]), of the vectors first to end - 1
template <class Isa, class W, int C, int first, int end>
INLINE void add_dots(const Unpacked<Isa> & w, typename Isa::Float scale, const uint8_t * block,
                     const uint8_t * starts, typename Isa::Float * sums) {
    using Int = typename Isa::Int;
    // with few columns, additions would wait for one another: integers may be added in two chains
    constexpr bool two = C == 1 || (C == 2 && Isa::registers >= 32);
    Int            dots[C], others[C];
    for (int c = 0; c < C; c++) {
        dots[c]   = needs_start<Isa, W>() ? Isa::broadcast(starts + 4 * c) : Int{};
        others[c] = Int{};
    }
    for (int i = first; i < end; i++) {
        for (int c = 0; c < C; c++) {
            Int & dot = two && i % 2 == 1 ? others[c] : dots[c];
            dot       = Isa::template dot_word<W::wide>(dot, w.quants[i], block + kBlock * c, i);
        }
    }
    const uint8_t * scales = block + kBlock * C;
    for (int c = 0; c < C; c++) {
        const Int dot = two ? Isa::add_ints(dots[c], others[c]) : dots[c];
        sums[c]       = Isa::fma(Isa::to_float(dot),
                                 Isa::mul(scale, Isa::broadcast_float(scales + 4 * c)), sums[c]);
    }
}

// One block: sums[c] += scale * column_scale[c] * (quants . column[c]), exact but for the sum
template <class Isa, class W, int C>
INLINE void add_block(const UnpackedAs<Isa, W::other> & w, const uint8_t * block,
                      typename Isa::Float * sums) {
    const uint8_t * starts = block + (kBlock + 4) * C;
    if constexpr (W::other == Other::split) {
        add_dots<Isa, W, C, 0, 4>(w, w.scale, block, starts, sums);
        add_dots<Isa, W, C, 4, 8>(w, w.other, block, starts + 4 * C, sums);
    } else {
        add_dots<Isa, W, C, 0, 8>(w, w.scale, block, starts, sums);
    }
    if constexpr (W::other == Other::minimum) {
        for (int c = 0; c < C; c++) {
            sums[c] = Isa::fnma(w.other, Isa::broadcast_float(starts + 4 * (2 * C + c)), sums[c]);
        }
    }
    if constexpr (W::other == Other::minima) {
        for (int c = 0; c < C; c++) {
            sums[c] = Isa::fnma(w.other, Isa::broadcast_float(starts + 4 * (2 * C + c)), sums[c]);
            sums[c] = Isa::fnma(w.second, Isa::broadcast_float(starts + 4 * (C + c)), sums[c]);
        }
    }
}

// use(w) for every block of 32 values of a panel, in their order, while they are in registers. Two
// units at once need more of them.
template <class Isa, class W, bool two, class Use>
INLINE void each_block(const uint8_t * panel, size_t row_stride, int64_t n_units, Use use) {
    int64_t u = 0;
    if constexpr (W::pairs && two) {
        for (; u + 1 < n_units; u += 2, panel += 2 * W::bytes) {
            W::template pair<Isa>(panel, row_stride, use);
        }
    }
    for (; u < n_units; u++, panel += W::bytes) {
        if constexpr (Isa::registers >= 32 || W::values == kBlock) {
            W::template unit<Isa>(panel, row_stride, use);
        } else {
            // what the registers do not hold is better put aside whole than piece by piece
            UnpackedAs<Isa, W::other> blocks[W::values / kBlock];
            int                       n = 0;
            W::template unit<Isa>(panel, row_stride,
                                  [&](const auto & w) ALWAYS { blocks[n++] = w; });
            for (const auto & w : blocks) {
                use(w);
            }
        }
    }
}

// sums[c] of the panel's rows with column c; between() runs once a block of 32 values.
template <class Isa, class W, int C, class Between>
INLINE void few_columns(const uint8_t * panel, size_t row_stride, int64_t n_units,
                        const uint8_t * tile, float * out, size_t out_stride, Between between) {
    typename Isa::Float sums[C];
    for (auto & sum : sums) {
        sum = Isa::zero();
    }
    each_block<Isa, W, C == 1 || Isa::registers >= 32>(panel, row_stride, n_units,
                                                       [&](const auto & w) ALWAYS {
                                                           between();
                                                           add_block<Isa, W, C>(w, tile, sums);
                                                           tile += C * kColumnBytes;
                                                       });
    for (int c = 0; c < C; c++) {
        Isa::store_floats(out + static_cast<size_t>(c) * out_stride, sums[c]);
    }
}

template <class Isa, class W, int C>
void few(const uint8_t * panel, size_t row_stride, int64_t n_units, const uint8_t * tile,
         float * out, size_t out_stride, const uint8_t * ahead) {
    constexpr int n_ahead = Isa::lanes * W::bytes * kBlock / W::values;
    // A byte or more a value are so many lines that asking for each twice costs what it gains.
    constexpr bool twice = W::bytes < W::values;
    few_columns<Isa, W, C>(panel, row_stride, n_units, tile, out, out_stride, [&]() ALWAYS {
        if (ahead != nullptr) {
            for (int i = 0; i < n_ahead; i += static_cast<int>(kLine)) {
                fetch_line(ahead + i);
                if constexpr (twice) {
                    fetch_line(ahead + kAskedTwice + i);
                }
            }
            ahead += n_ahead;
        }
    });
}

// is_signed: quants as they are, rather than made unsigned by the type's offset
template <class Isa, class W, bool is_signed = false>
void unpack_panel(const uint8_t * panel, size_t row_stride, int64_t n_units, uint8_t * unpacked) {
    auto * out = reinterpret_cast<UnpackedAs<Isa, W::other> *>(unpacked);
    each_block<Isa, W, true>(panel, row_stride, n_units, [&](const auto & w) ALWAYS {
        for (int j = 0; j < 8; j++) {
            if constexpr (is_signed && needs_start<Isa, W>()) {
                Isa::store(&out->quants[j], Isa::sub_bytes(w.quants[j], W::offset));
            } else {
                Isa::store(&out->quants[j], w.quants[j]);
            }
        }
        Isa::store_floats(reinterpret_cast<float *>(&out->scale), w.scale);
        if constexpr (W::other != Other::none) {
            Isa::store_floats(reinterpret_cast<float *>(&out->other), w.other);
        }
        if constexpr (W::other == Other::minima) {
            Isa::store_floats(reinterpret_cast<float *>(&out->second), w.second);
        }
        out++;
    });
}

template <class Isa, class W, int C>
void many(const uint8_t * unpacked, int64_t n_blocks, const uint8_t * tile, float * out,
          size_t out_stride, bool first, Fetch * fetch) {
    const auto *        w = reinterpret_cast<const UnpackedAs<Isa, W::other> *>(unpacked);
    typename Isa::Float sums[C];
    for (int c = 0; c < C; c++) {
        sums[c] = first ? Isa::zero() : Isa::load_floats(out + static_cast<size_t>(c) * out_stride);
    }
    Fetch next = *fetch;
    for (int64_t i = 0; i < n_blocks; i++) {
        next.run(1);
        add_block<Isa, W, C>(w[i], tile, sums);
        tile += C * kColumnBytes;
    }
    *fetch = next;
    for (int c = 0; c < C; c++) {
        Isa::store_floats(out + static_cast<size_t>(c) * out_stride, sums[c]);
    }
}

}  // namespace
