// Included last by the file of each instruction set: its table of kernels.
#pragma once

#include "panel.h"
#include "quantize_columns.h"

namespace {

template <class Isa> const inferos::kernels::Variant * variant_table(const char * name) {
    static constexpr WeightType types[] = {
        weight_type<Isa, Q4_0>(), weight_type<Isa, Q8_0>(), weight_type<Isa, Q4_K>(),
        weight_type<Isa, Q5_K>(), weight_type<Isa, Q6_K>(),
    };
    static const inferos::kernels::Variant variant = {
        name, Isa::lanes, quantize_columns, types, sizeof(types) / sizeof(types[0]), nullptr,
    };
    return &variant;
}

}  // namespace
