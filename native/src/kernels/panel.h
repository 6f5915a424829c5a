// A panel of rows against a tile of columns, for any instruction set and type of weights.
#pragma once

#include "unpack.h"

namespace {

using inferos::kernels::Ahead;
using inferos::kernels::Fetch;
using inferos::kernels::kBlock;
using inferos::kernels::kColumnBytes;
using inferos::kernels::kTile;
using inferos::kernels::WeightType;

template <class Isa, class W> constexpr bool needs_start() {
    return W::offset != 0 && (!W::wide || Isa::wide_offset);
}

// One block: sums[c] += scale * column_scale[c] * (quants . column[c]), exact but for the sum
template <class Isa, class W, int C>
inline void add_block(const Unpacked<Isa> & w, const uint8_t * block, typename Isa::Float * sums) {
    using Int           = typename Isa::Int;
    const uint8_t * scales = block + kBlock * C;
    const uint8_t * starts = scales + 4 * C;
    Int             dots[C], others[C];
    for (int c = 0; c < C; c++) {
        if constexpr (needs_start<Isa, W>()) {
            dots[c] = Isa::broadcast(starts + 4 * c);
            if constexpr (W::other == Other::split) {
                others[c] = Isa::broadcast(starts + 4 * (C + c));
            }
        } else {
            dots[c] = others[c] = Int{};
        }
    }
    for (int i = 0; i < 8; i++) {
        for (int c = 0; c < C; c++) {
            const Int a = Isa::broadcast(block + kBlock * c + 4 * i);
            if (W::other == Other::split && i >= 4) {
                others[c] = Isa::template dot<W::wide>(others[c], w.quants[i], a);
            } else {
                dots[c] = Isa::template dot<W::wide>(dots[c], w.quants[i], a);
            }
        }
    }
    for (int c = 0; c < C; c++) {
        const auto scale = Isa::broadcast_float(scales + 4 * c);
        sums[c] = Isa::fma(Isa::to_float(dots[c]), Isa::mul(w.scale, scale), sums[c]);
        if constexpr (W::other == Other::split) {
            sums[c] = Isa::fma(Isa::to_float(others[c]), Isa::mul(w.other, scale), sums[c]);
        }
        if constexpr (W::other == Other::minimum) {
            sums[c] = Isa::fnma(w.other, Isa::broadcast_float(starts + 4 * (2 * C + c)), sums[c]);
        }
    }
}

template <class Isa, class W, int C>
void few(const uint8_t * panel, size_t row_stride, int64_t n_units, const uint8_t * tile,
         float * out, size_t out_stride, Ahead ahead) {
    constexpr int       n = W::values / kBlock;
    typename Isa::Float sums[C];
    for (auto & sum : sums) {
        sum = Isa::zero();
    }
    for (int64_t u = 0; u < n_units; u++) {
        for (size_t i = 0; i < ahead.per_unit; i += 64) {
            _mm_prefetch(reinterpret_cast<const char *>(ahead.start + i), _MM_HINT_T1);
        }
        ahead.start += ahead.per_unit;
        Unpacked<Isa> w[n];
        W::template unpack<Isa>(panel, row_stride, w);
        for (int i = 0; i < n; i++) {
            add_block<Isa, W, C>(w[i], tile, sums);
            tile += C * kColumnBytes;
        }
        panel += W::bytes;
    }
    for (int c = 0; c < C; c++) {
        Isa::store_floats(out + static_cast<size_t>(c) * out_stride, sums[c]);
    }
}

template <class Isa, class W>
void unpack_panel(const uint8_t * panel, size_t row_stride, int64_t n_units, uint8_t * unpacked) {
    constexpr int n = W::values / kBlock;
    auto *        out = reinterpret_cast<Unpacked<Isa> *>(unpacked);
    for (int64_t u = 0; u < n_units; u++) {
        Unpacked<Isa> w[n];
        W::template unpack<Isa>(panel, row_stride, w);
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < 8; j++) {
                Isa::store(&out[i].quants[j], w[i].quants[j]);
            }
            Isa::store_floats(reinterpret_cast<float *>(&out[i].scale), w[i].scale);
            if constexpr (W::other != Other::none) {
                Isa::store_floats(reinterpret_cast<float *>(&out[i].other), w[i].other);
            }
        }
        out += n;
        panel += W::bytes;
    }
}

template <class Isa, class W, int C>
void many(const uint8_t * unpacked, int64_t n_blocks, const uint8_t * tile, float * out,
          size_t out_stride, bool first, Fetch * fetch) {
    const auto *        w = reinterpret_cast<const Unpacked<Isa> *>(unpacked);
    typename Isa::Float sums[C];
    for (int c = 0; c < C; c++) {
        sums[c] = first ? Isa::zero()
                        : Isa::load_floats(out + static_cast<size_t>(c) * out_stride);
    }
    Fetch next = *fetch;
    for (int64_t i = 0; i < n_blocks; i++) {
        for (int64_t j = 0; j < next.per_block && next.left > 0; j++, next.left--) {
            _mm_prefetch(reinterpret_cast<const char *>(next.row + 64 * next.line), _MM_HINT_T1);
            if (++next.line == next.n_lines) {
                next.line = 0;
                next.row += next.row_stride;
            }
        }
        add_block<Isa, W, C>(w[i], tile, sums);
        tile += C * kColumnBytes;
    }
    *fetch = next;
    for (int c = 0; c < C; c++) {
        Isa::store_floats(out + static_cast<size_t>(c) * out_stride, sums[c]);
    }
}

template <class Isa, class W> constexpr WeightType weight_type() {
    return {
        W::type, W::values, W::bytes, needs_start<Isa, W>() ? W::offset : 0,
        W::other == Other::split,
        {few<Isa, W, 1>, few<Isa, W, 2>, few<Isa, W, 3>, few<Isa, W, 4>, few<Isa, W, 5>,
         few<Isa, W, 6>, few<Isa, W, 7>, few<Isa, W, 8>},
        unpack_panel<Isa, W>,
        {many<Isa, W, 1>, many<Isa, W, 2>, many<Isa, W, 3>, many<Isa, W, 4>, many<Isa, W, 5>,
         many<Isa, W, 6>, many<Isa, W, 7>, many<Isa, W, 8>},
        sizeof(Unpacked<Isa>),
    };
}

}  // namespace
