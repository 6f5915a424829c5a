// Rows of float weights against columns of activations, for any instruction set. As in rows.h, a sum
// has 16 parts whatever the vectors' width, so that all variants round alike, and a column's result
// does not depend on the columns beside it.
#pragma once

#include "rows.h"

namespace {

using inferos::kernels::FloatType;
using inferos::kernels::kFloatTile;

struct F32 {
    static constexpr int type = 0, bytes = 4;
    template <class Isa> INLINE typename Isa::Float load(const uint8_t * p) {
        return Isa::as_float(Isa::load(p));
    }
};
struct F16 {
    static constexpr int type = 1, bytes = 2;
    template <class Isa> INLINE typename Isa::Float load(const uint8_t * p) {
        return Isa::load_half_run(p);
    }
};
// The upper half of a float32.
struct BF16 {
    static constexpr int type = 30, bytes = 2;
    template <class Isa> INLINE typename Isa::Float load(const uint8_t * p) {
        return Isa::as_float(Isa::template left<16>(Isa::unsigned_halves(p)));
    }
};

// Rows and columns of a tile whose sums stay in registers.
template <class Isa> constexpr int float_tile() {
    return Isa::registers * Isa::lanes >= 512 ? 4 : 2;
}

// A sum for each row and column, in registers: for that, gcc needs loops that are not nested.
template <class Isa, class W, int R, int C>
void float_product(const uint8_t * rows, size_t row_stride, int64_t n, const float * x,
                   size_t x_stride, float * out, size_t out_stride, bool fetches) {
    using Float             = typename Isa::Float;
    constexpr int n_vectors = kParts / Isa::lanes;
    const size_t  ahead     = static_cast<size_t>(R) * row_stride;
    Float         sums[n_vectors * R * C];
    for (auto & sum : sums) {
        sum = Isa::zero();
    }
    for (int64_t i = 0; i < n; i += kParts) {
        const uint8_t * at = rows + i * W::bytes;
        if (fetches && i * W::bytes % static_cast<int64_t>(kLine) == 0) {
            for (int r = 0; r < R; r++) {
                fetch_line(at + static_cast<size_t>(r) * row_stride + ahead);
            }
        }
        Float weights[n_vectors * R], values[n_vectors * C];
        for (int k = 0; k < n_vectors * R; k++) {
            const int v = k / R, r = k % R;
            weights[k] = W::template load<Isa>(at + static_cast<size_t>(r) * row_stride +
                                               static_cast<size_t>(v) * Isa::lanes * W::bytes);
        }
        for (int k = 0; k < n_vectors * C; k++) {
            const int v = k / C, c = k % C;
            values[k] = Isa::load_floats(x + static_cast<size_t>(c) * x_stride + i +
                                         static_cast<int64_t>(v) * Isa::lanes);
        }
        for (int k = 0; k < n_vectors * R * C; k++) {
            const int v = k / (R * C), r = k / C % R, c = k % C;
            sums[k] = Isa::fma(weights[v * R + r], values[v * C + c], sums[k]);
        }
    }
    alignas(64) float parts[R * C][kParts];
    for (int k = 0; k < n_vectors * R * C; k++) {
        const int v = k / (R * C), of = k % (R * C);
        Isa::store_floats(parts[of] + v * Isa::lanes, sums[k]);
    }
    for (int k = 0; k < R * C; k++) {
        const int r = k / C, c = k % C;
        out[static_cast<size_t>(c) * out_stride + static_cast<size_t>(r)] = folded<Isa>(parts[k]);
    }
}

template <class Isa, class W, int R, int C> constexpr inferos::kernels::FloatKernel float_kernel() {
    if constexpr (C <= float_tile<Isa>()) {
        return float_product<Isa, W, R, C>;
    } else {
        return nullptr;
    }
}

template <class Isa, class W> constexpr FloatType float_type() {
    constexpr int R = float_tile<Isa>();
    return {
        W::type,
        W::bytes,
        R,
        {float_kernel<Isa, W, R, 1>(), float_kernel<Isa, W, R, 2>(), float_kernel<Isa, W, R, 3>(),
         float_kernel<Isa, W, R, 4>()},
        {float_kernel<Isa, W, 1, 1>(), float_kernel<Isa, W, 1, 2>(), float_kernel<Isa, W, 1, 3>(),
         float_kernel<Isa, W, 1, 4>()},
    };
}

}  // namespace
