// Attention over a panel of cached positions, for any instruction set. Each value of the result is
// one chain of fused multiply-adds in the order of the positions, whatever the width of the tile.
#pragma once

#include "panel.h"

namespace {

using inferos::kernels::CacheType;
using inferos::kernels::Seen;

// e^x for x <= 0; 0 below -87, where float32 has no normal numbers left; NaN stays. The argument is
// reduced by a multiple of ln 2, in two parts; the rest is a Taylor series up to x^7.
template <class Isa> inline typename Isa::Float exponential(typename Isa::Float x) {
    const auto n = Isa::round(Isa::mul(x, Isa::set(1.44269504f)));
    auto       r = Isa::fnma(n, Isa::set(0.693359375f), x);
    r            = Isa::fnma(n, Isa::set(-2.12194440e-4f), r);
    auto sum     = Isa::set(1.0f / 5040.0f);
    sum          = Isa::fma(sum, r, Isa::set(1.0f / 720.0f));
    sum          = Isa::fma(sum, r, Isa::set(1.0f / 120.0f));
    sum          = Isa::fma(sum, r, Isa::set(1.0f / 24.0f));
    sum          = Isa::fma(sum, r, Isa::set(1.0f / 6.0f));
    sum          = Isa::fma(sum, r, Isa::set(0.5f));
    sum          = Isa::fma(sum, r, Isa::set(1.0f));
    sum          = Isa::fma(sum, r, Isa::set(1.0f));
    return Isa::where_less(x, Isa::set(-87.0f), Isa::zero(), Isa::scale_by_power(sum, n));
}

template <class Isa>
void softmax(float * scores, int64_t n_positions, float scale, const uint16_t * mask, float slope,
             Seen * seen) {
    const auto infinite = Isa::set(-__builtin_inff());
    auto       largest  = infinite;
    unsigned   any      = 0;
    for (int64_t i = 0; i < n_positions; i += Isa::lanes) {
        auto s = Isa::mul(Isa::load_floats(scores + i), Isa::set(scale));
        if (mask != nullptr) {
            const auto m = Isa::load_half_run(mask + i);
            s            = Isa::where_equal(m, infinite, infinite, Isa::fma(m, Isa::set(slope), s));
        }
        Isa::store_floats(scores + i, s);
        largest = Isa::max(s, largest);
        any |= Isa::differing(s, infinite);
    }
    largest = Isa::max_across(largest);
    // NaN alone has no largest, and must not pass for nothing
    largest  = any != 0 ? Isa::where_equal(largest, infinite, Isa::zero(), largest) : largest;
    auto sum = Isa::zero();
    for (int64_t i = 0; i < n_positions; i += Isa::lanes) {
        const auto p = any != 0 ? exponential<Isa>(Isa::sub(Isa::load_floats(scores + i), largest))
                                : Isa::zero();
        Isa::store_floats(scores + i, p);
        sum = Isa::add(sum, p);
    }
    float lanes[Isa::lanes];
    Isa::store_floats(lanes, largest);
    seen->largest = lanes[0];
    seen->sum     = Isa::sum_across(sum);
}

template <class Isa> void merge(Seen * into, const Seen * later, int32_t n_blocks) {
    const float nothing = -__builtin_inff();
    if (later->largest == nothing) {
        return;
    }
    const bool  is_first = into->largest == nothing;
    const float largest =
        is_first || later->largest > into->largest ? later->largest : into->largest;
    const auto before =
        is_first ? Isa::zero() : exponential<Isa>(Isa::set(into->largest - largest));
    const auto after = exponential<Isa>(Isa::set(later->largest - largest));
    for (int32_t i = 0; i < n_blocks * kBlock; i += Isa::lanes) {
        const auto old = is_first ? Isa::zero() : Isa::load_floats(into->values + i);
        Isa::store_floats(into->values + i, Isa::fma(Isa::load_floats(later->values + i), after,
                                                     Isa::mul(old, before)));
    }
    float factors[2][Isa::lanes];
    Isa::store_floats(factors[0], before);
    Isa::store_floats(factors[1], after);
    into->sum     = (is_first ? 0.0f : into->sum * factors[0][0]) + later->sum * factors[1][0];
    into->largest = largest;
}

// ---- K

using KeysQ8_0 = Q8_0;
using KeysQ4_0 = Q4_0;

// A row is n_units blocks of 32 float16; its products are added lane by lane, then across.
struct KeysF16 {
    static constexpr int type = 1, bytes = 64;
};

template <class Isa, int C>
void float_scores(const uint8_t * panel, size_t row_stride, int64_t n_units, const uint8_t * tile,
                  float * out, size_t out_stride, Fetch fetch) {
    const auto *      queries = reinterpret_cast<const float *>(tile);
    const int64_t     n       = n_units * kBlock;
    alignas(64) float products[C][Isa::lanes][Isa::lanes];
    for (int row = 0; row < Isa::lanes; row++) {
        fetch.run(1);
        typename Isa::Float sums[C];
        for (auto & sum : sums) {
            sum = Isa::zero();
        }
        const uint8_t * keys = panel + static_cast<size_t>(row) * row_stride;
        for (int64_t i = 0; i < n; i += Isa::lanes) {
            const auto k = Isa::load_half_run(keys + 2 * i);
            for (int c = 0; c < C; c++) {
                sums[c] = Isa::fma(k, Isa::load_floats(queries + c * n + i), sums[c]);
            }
        }
        for (int c = 0; c < C; c++) {
            Isa::store_floats(products[c][row], sums[c]);
        }
    }
    for (int c = 0; c < C; c++) {
        auto sum = Isa::zero();
        for (int part = 0; part < Isa::lanes / 4; part++) {
            typename Isa::Int columns[4];
            transpose16<Isa>(reinterpret_cast<const uint8_t *>(&products[c][0][4 * part]),
                             sizeof(products[c][0]), columns);
            for (const auto & column : columns) {
                sum = Isa::add(sum, Isa::as_float(column));
            }
        }
        Isa::store_floats(out + static_cast<size_t>(c) * out_stride, sum);
    }
}

template <class Isa, class K, int C>
void quantized_scores(const uint8_t * panel, size_t row_stride, int64_t n_units,
                      const uint8_t * tile, float * out, size_t out_stride, Fetch fetch) {
    few_columns<Isa, K, C>(panel, row_stride, n_units, tile, out, out_stride,
                           [&]() ALWAYS { fetch.run(1); });
}

template <class Isa, class K, int C> constexpr inferos::kernels::ScoresKernel scores_kernel() {
    if constexpr (K::type == KeysF16::type) {
        return float_scores<Isa, C>;
    } else {
        return quantized_scores<Isa, K, C>;
    }
}

// ---- V: vector i of a block's 32 values, without its scale

struct ValuesQ8_0 {
    static constexpr int  bytes  = 34;
    static constexpr bool scaled = true;
    template <class Isa> static typename Isa::Float load(const uint8_t * block, int i) {
        return Isa::to_float(Isa::signed_bytes(block + 2 + Isa::lanes * i));
    }
};

struct ValuesQ4_0 {
    static constexpr int  bytes  = 18;
    static constexpr bool scaled = true;
    template <class Isa> static typename Isa::Float load(const uint8_t * block, int i) {
        const int  first  = Isa::lanes * i;  // the low nibbles are the first 16 values
        const auto raw    = Isa::unsigned_bytes(block + 2 + first % 16);
        const auto nibble = first < 16 ? Isa::and_ints(raw, 15) : Isa::template right<4>(raw);
        return Isa::to_float(Isa::add_ints(nibble, -8));
    }
};

struct ValuesF16 {
    static constexpr int  bytes  = 64;
    static constexpr bool scaled = false;
    template <class Isa> static typename Isa::Float load(const uint8_t * block, int i) {
        return Isa::load_half_run(block + 2 * Isa::lanes * i);
    }
};

template <class Isa, class V, int C>
void add_values(const uint8_t * panel, size_t row_stride, int32_t n_blocks, const float * p,
                size_t p_stride, Seen * out, Fetch fetch) {
    constexpr int     n = 2;  // vectors at a time
    alignas(64) float weights[C][Isa::lanes];
    unsigned          used = 0;
    for (int c = 0; c < C; c++) {
        const auto weight = Isa::load_floats(p + static_cast<size_t>(c) * p_stride);
        used |= Isa::differing(weight, Isa::zero());
        Isa::store_floats(weights[c], weight);
    }
    if (used == 0) {
        fetch.run(n_blocks);
        return;
    }
    for (int32_t b = 0; b < n_blocks; b++) {
        fetch.run(1);
        const uint8_t * block = panel + b * V::bytes;
        if constexpr (V::scaled) {
            const auto scales = Isa::load_halves(block, row_stride);
            for (int c = 0; c < C; c++) {
                const auto weight = Isa::load_floats(p + static_cast<size_t>(c) * p_stride);
                // a position that does not count adds nothing, even if its scale is no number
                Isa::store_floats(weights[c], Isa::where_equal(weight, Isa::zero(), Isa::zero(),
                                                               Isa::mul(weight, scales)));
            }
        }
        for (int i = 0; i < kBlock / Isa::lanes; i += n) {
            typename Isa::Float sums[C][n];
            for (int c = 0; c < C; c++) {
                for (int j = 0; j < n; j++) {
                    sums[c][j] =
                        Isa::load_floats(out[c].values + kBlock * b + Isa::lanes * (i + j));
                }
            }
            const uint8_t * row = block;
            for (int position = 0; position < Isa::lanes; position++, row += row_stride) {
                if ((used >> position & 1) == 0) {
                    continue;
                }
                typename Isa::Float v[n];
                for (int j = 0; j < n; j++) {
                    v[j] = V::template load<Isa>(row, i + j);
                }
                for (int c = 0; c < C; c++) {
                    const auto weight = Isa::broadcast_float(&weights[c][position]);
                    for (int j = 0; j < n; j++) {
                        sums[c][j] = Isa::fma(v[j], weight, sums[c][j]);
                    }
                }
            }
            for (int c = 0; c < C; c++) {
                for (int j = 0; j < n; j++) {
                    Isa::store_floats(out[c].values + kBlock * b + Isa::lanes * (i + j),
                                      sums[c][j]);
                }
            }
        }
    }
}

template <class Isa, class K> constexpr int32_t offset_of() {
    if constexpr (K::type == KeysF16::type) {
        return 0;
    } else {
        return needs_start<Isa, K>() ? K::offset : 0;
    }
}

template <class Isa, class K, class V> constexpr CacheType cache_type() {
    return {
        K::type,
        K::bytes,
        V::scaled,
        offset_of<Isa, K>(),
        {scores_kernel<Isa, K, 1>(), scores_kernel<Isa, K, 2>(), scores_kernel<Isa, K, 3>(),
         scores_kernel<Isa, K, 4>(), scores_kernel<Isa, K, 5>(), scores_kernel<Isa, K, 6>(),
         scores_kernel<Isa, K, 7>(), scores_kernel<Isa, K, 8>()},
        {add_values<Isa, V, 1>, add_values<Isa, V, 2>, add_values<Isa, V, 3>, add_values<Isa, V, 4>,
         add_values<Isa, V, 5>, add_values<Isa, V, 6>, add_values<Isa, V, 7>,
         add_values<Isa, V, 8>},
    };
}

}  // namespace
