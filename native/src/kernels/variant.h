// Included last by the file of each instruction set: its table of kernels.
#pragma once

#include <type_traits>

#include "attention.h"
#include "floats.h"
#include "rows.h"
#include "weights.h"

namespace {

constexpr int kChains = 12;  // more than a multiplier has products under way

template <class Isa> int32_t multiply(int64_t n_rounds) {
    uint8_t bytes[sizeof(typename Isa::Int)];
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = static_cast<uint8_t>(n_rounds + static_cast<int64_t>(i));
    }
    auto              factor = Isa::and_bytes(Isa::load(bytes), 0x0f);
    typename Isa::Int sums[kChains];
    for (auto & sum : sums) {
        sum = factor;
    }
    for (int64_t i = 0; i < n_rounds; i++) {
        for (auto & sum : sums) {
            Isa::forget(factor);  // no part of it is known from the last time
            sum = Isa::template dot<false>(sum, factor, factor);
        }
    }
    for (const auto & sum : sums) {
        sums[0] = Isa::add_ints(sums[0], sum);
    }
    Isa::store(bytes, sums[0]);
    int32_t first;
    __builtin_memcpy(&first, bytes, sizeof(first));
    return first;
}

template <class Isa> int32_t multiply_blocks(int64_t n_rounds) {
    constexpr int       C                      = Isa::takes_two_panels ? kMostOfTwo : kTile;
    alignas(64) uint8_t tile[C * kColumnBytes] = {};
    for (int i = 0; i < C * kBlock; i++) {
        tile[i] = static_cast<uint8_t>((n_rounds + i) & 0x0f);
    }
    for (int c = 0; c < C; c++) {
        const float scale = 1e-6f;  // the sum is to be a number
        __builtin_memcpy(tile + kBlock * C + 4 * c, &scale, sizeof(scale));
    }
    Unpacked<Isa> w[2];
    for (auto & quants : w[0].quants) {
        quants = Isa::and_bytes(Isa::load(tile), 0x0f);
    }
    w[0].scale = w[0].other = Isa::set(1.0f);
    w[1]                    = w[0];
    typename Isa::Float sums[2][C];
    for (auto & sum : sums) {
        for (auto & one : sum) {
            one = Isa::zero();
        }
    }
    for (int64_t i = 0; i < n_rounds; i++) {
        __asm__ volatile("" : : "r"(tile), "r"(w) : "memory");  // read again in every round
        if constexpr (Isa::takes_two_panels) {
            add_block_of_two<Isa, Q4_0, C>(w[0], w[1], tile, sums);
        } else {
            add_block<Isa, Q4_0, C>(w[0], tile, sums[0]);
        }
    }
    auto total = Isa::zero();
    for (const auto & sum : sums) {
        for (const auto & one : sum) {
            total = Isa::add(total, one);
        }
    }
    return static_cast<int32_t>(Isa::sum_across(total));
}

template <class Isa> const inferos::kernels::Variant * variant_table(const char * name) {
    using Types = std::conditional_t<Isa::has_gathers, WeightTypes, FewLookUps>;
    constexpr auto &           types         = WeightTable<Isa, Types>::types;
    static constexpr FloatType float_types[] = {
        float_type<Isa, F32>(),
        float_type<Isa, F16>(),
        float_type<Isa, BF16>(),
    };
    static constexpr CacheType cache_types[] = {
        cache_type<Isa, KeysQ8_0, ValuesQ8_0>(),
        cache_type<Isa, KeysQ4_0, ValuesQ4_0>(),
        cache_type<Isa, KeysF16, ValuesF16>(),
    };
    static const inferos::kernels::Variant variant = {
        name,
        Isa::lanes,
        quantize_columns<typename Isa::Block>,
        types,
        sizeof(types) / sizeof(types[0]),
        float_types,
        sizeof(float_types) / sizeof(float_types[0]),
        {cache_types, sizeof(cache_types) / sizeof(cache_types[0]), softmax<Isa>, merge<Isa>},
        row_kernels<Isa>(),
        {multiply<Isa>, 4 * Isa::lanes * kChains},
        {multiply_blocks<Isa>,
         kBlock * Isa::lanes * (Isa::takes_two_panels ? 2 * kMostOfTwo : kTile)},
        nullptr,
    };
    return &variant;
}

}  // namespace
