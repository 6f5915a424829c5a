// Included last by the file of each instruction set: its table of kernels.
#pragma once

#include "attention.h"
#include "panel.h"
#include "quantize_columns.h"

namespace {

template <class Isa> const inferos::kernels::Variant * variant_table(const char * name) {
    static constexpr WeightType types[] = {
        weight_type<Isa, Q4_0>(), weight_type<Isa, Q8_0>(), weight_type<Isa, Q4_K>(),
        weight_type<Isa, Q5_K>(), weight_type<Isa, Q6_K>(),
    };
    static constexpr CacheType cache_types[] = {
        cache_type<Isa, KeysQ8_0, ValuesQ8_0>(),
        cache_type<Isa, KeysQ4_0, ValuesQ4_0>(),
        cache_type<Isa, KeysF16, ValuesF16>(),
    };
    static const inferos::kernels::Variant variant = {
        name,
        Isa::lanes,
        quantize_columns,
        types,
        sizeof(types) / sizeof(types[0]),
        {cache_types, sizeof(cache_types) / sizeof(cache_types[0]), softmax<Isa>, merge<Isa>},
    };
    return &variant;
}

}  // namespace
