// The kernels of every type of weights, for any instruction set.
#pragma once

#include "by_rows.h"
#include "two_panels.h"

namespace {

using inferos::kernels::ByRows;
using inferos::kernels::TwoPanelsKernel;
using inferos::kernels::WeightType;

template <class Isa, class W> constexpr ByRows by_rows() {
    if constexpr (reads_rows<Isa, W>()) {
        return {one_by_rows<Isa, W>, quantize_by_rows<W, typename Isa::Block>, RowOf<W>::units};
    } else {
        return {};
    }
}

// Two panels of 16 weights' vectors and the sums of 6 columns take 28 registers.
template <class Isa, class W, int C> constexpr TwoPanelsKernel two_panels() {
    if constexpr (Isa::takes_two_panels) {
        return many_of_two<Isa, W, C>;
    } else {
        return nullptr;
    }
}

template <class Isa, class W> constexpr WeightType weight_type() {
    return {
        W::type,
        W::values,
        W::bytes,
        needs_start<Isa, W>() ? W::offset : 0,
        W::other == Other::split || W::other == Other::minima,
        {few<Isa, W, 1>, few<Isa, W, 2>, few<Isa, W, 3>, few<Isa, W, 4>, few<Isa, W, 5>,
         few<Isa, W, 6>, few<Isa, W, 7>, few<Isa, W, 8>},
        unpack_panel<Isa, W>,
        {many<Isa, W, 1>, many<Isa, W, 2>, many<Isa, W, 3>, many<Isa, W, 4>, many<Isa, W, 5>,
         many<Isa, W, 6>, many<Isa, W, 7>, many<Isa, W, 8>},
        {two_panels<Isa, W, 4>(), two_panels<Isa, W, 5>(), two_panels<Isa, W, 6>()},
        sizeof(UnpackedAs<Isa, W::other>),
        by_rows<Isa, W>(),
        nullptr,
        nullptr,
        {},
    };
}

template <class... Types> struct TypeList {};
template <class... Types, class... More>
TypeList<Types..., More...> joined(TypeList<Types...>, TypeList<More...>);

// Without gathers every look-up is a load of its own: of more than iq3_s they would be so many that a
// compiler takes minutes and gigabytes for them.
using FewLookUps =
    TypeList<Q4_0, Q8_0, Q4_K, Q5_K, Q6_K, Q3_K, Q2_K, IQ4_NL, IQ4_XS, Q5_0, Q4_1, Q5_1, IQ3_S>;
// All that have kernels.
using WeightTypes = decltype(joined(FewLookUps(), TypeList<IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS>()));

template <class Isa, class List> struct WeightTable;
template <class Isa, class... Types> struct WeightTable<Isa, TypeList<Types...>> {
    static constexpr WeightType types[] = {weight_type<Isa, Types>()...};
};

}  // namespace
