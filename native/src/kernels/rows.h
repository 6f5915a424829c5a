// Operations on rows of float32, for any instruction set. Sums have 16 parts whatever the vectors'
// width, which are added in a fixed order, so that all variants round alike.
#pragma once

#include <cmath>

#include "attention.h"

namespace {

using inferos::kernels::RowKernels;

constexpr int64_t kParts = 16;

// The sum of a sum's parts: the upper half is added to the lower one until one is left.
template <class Isa> inline float folded(const float * parts) {
    typename Isa::Float sums[kParts / Isa::lanes];
    for (int v = 0; v < kParts / Isa::lanes; v++) {
        sums[v] = Isa::load_floats(parts + v * Isa::lanes);
    }
    for (int half = kParts / Isa::lanes / 2; half > 0; half /= 2) {
        for (int v = 0; v < half; v++) {
            sums[v] = Isa::add(sums[v], sums[v + half]);
        }
    }
    return Isa::sum_across(sums[0]);
}

// add(i) is the vector of values i to i + lanes - 1.
template <class Isa, class Add> inline float sum_row(int64_t n, Add add) {
    constexpr int       n_vectors = kParts / Isa::lanes;
    typename Isa::Float sums[n_vectors];
    for (auto & sum : sums) {
        sum = Isa::zero();
    }
    for (int64_t i = 0; i < n; i += kParts) {
        for (int v = 0; v < n_vectors; v++) {
            sums[v] = add(sums[v], i + v * Isa::lanes);
        }
    }
    alignas(64) float parts[kParts];
    for (int v = 0; v < n_vectors; v++) {
        Isa::store_floats(parts + v * Isa::lanes, sums[v]);
    }
    return folded<Isa>(parts);
}

template <class Isa> void norm_row(int64_t n, const float * x, float epsilon, float * y) {
    using Float = typename Isa::Float;
    const float sum =
        sum_row<Isa>(n, [x](Float s, int64_t i) { return Isa::add(s, Isa::load_floats(x + i)); });
    const auto  mean    = Isa::set(sum / static_cast<float>(n));
    const float squares = sum_row<Isa>(n, [x, y, mean](Float s, int64_t i) {
        const auto centred = Isa::sub(Isa::load_floats(x + i), mean);
        Isa::store_floats(y + i, centred);
        return Isa::fma(centred, centred, s);
    });
    const auto  factor  = Isa::set(1.0f / std::sqrt(squares / static_cast<float>(n) + epsilon));
    for (int64_t i = 0; i < n; i += Isa::lanes) {
        Isa::store_floats(y + i, Isa::mul(Isa::load_floats(y + i), factor));
    }
}

template <class Isa> void add_rows(int64_t n, const float * a, const float * b, float * y) {
    for (int64_t i = 0; i < n; i += Isa::lanes) {
        Isa::store_floats(y + i, Isa::add(Isa::load_floats(a + i), Isa::load_floats(b + i)));
    }
}

template <class Isa> void mul_rows(int64_t n, const float * a, const float * b, float * y) {
    for (int64_t i = 0; i < n; i += Isa::lanes) {
        Isa::store_floats(y + i, Isa::mul(Isa::load_floats(a + i), Isa::load_floats(b + i)));
    }
}

template <class Isa> void div_rows(int64_t n, const float * a, const float * b, float * y) {
    for (int64_t i = 0; i < n; i += Isa::lanes) {
        Isa::store_floats(y + i, Isa::div(Isa::load_floats(a + i), Isa::load_floats(b + i)));
    }
}

template <class Isa>
void scale_row(int64_t n, const float * x, float factor, float offset, float * y) {
    for (int64_t i = 0; i < n; i += Isa::lanes) {
        Isa::store_floats(y + i,
                          Isa::fma(Isa::load_floats(x + i), Isa::set(factor), Isa::set(offset)));
    }
}

// 0.5 (1 + tanh(u)) is 1 / (1 + e) for e = exp(-2u), and e' / (1 + e') for e' = exp(2u): whichever
// exponential is not above 1 is taken, so that neither overflows nor cancels.
template <class Isa> void gelu_row(int64_t n, const float * x, float * y) {
    const auto one = Isa::set(1.0f);
    for (int64_t i = 0; i < n; i += Isa::lanes) {
        const auto v     = Isa::load_floats(x + i);
        const auto inner = Isa::fma(Isa::mul(v, v), Isa::set(0.044715f), one);
        // 2 sqrt(2 / pi) x (1 + 0.044715 x^2)
        const auto u   = Isa::mul(Isa::mul(v, Isa::set(1.5957691216f)), inner);
        const auto e   = exponential<Isa>(Isa::sub(Isa::zero(), Isa::abs(u)));
        const auto top = Isa::where_less(u, Isa::zero(), e, one);
        // where e is 0, infinity times 0 would be no number
        Isa::store_floats(y + i, Isa::where_equal(top, Isa::zero(), Isa::mul(top, Isa::zero()),
                                                  Isa::mul(v, Isa::div(top, Isa::add(one, e)))));
    }
}

// x Phi(x) with Phi(-v) = erfc(v / sqrt(2)) / 2 and erfc(z) = exp(-z^2) P(1 / (1 + 0.327 z)), a
// polynomial fitted to a relative error of 1.5e-7 for z from 0 to 10.
template <class Isa> void gelu_erf_row(int64_t n, const float * x, float * y) {
    constexpr float factors[] = {0.184719369f, 0.18035993f,   0.20608148f,  0.0228293333f,
                                 0.459631383f, -0.414862782f, 0.503204823f, -0.141963422f};
    const auto      one       = Isa::set(1.0f);
    for (int64_t i = 0; i < n; i += Isa::lanes) {
        const auto v = Isa::load_floats(x + i);
        const auto z = Isa::mul(Isa::abs(v), Isa::set(0.707106781f));
        const auto t = Isa::div(one, Isa::fma(z, Isa::set(0.327f), one));
        auto       p = Isa::set(factors[7]);
        for (int k = 6; k >= 0; k--) {
            p = Isa::fma(p, t, Isa::set(factors[k]));
        }
        const auto square = Isa::sub(Isa::zero(), Isa::mul(z, z));
        const auto above  = Isa::mul(Isa::mul(exponential<Isa>(square), Isa::mul(p, t)),
                                     Isa::set(0.5f));  // Phi(-|x|)
        const auto below  = Isa::where_less(v, Isa::zero(), above, Isa::sub(one, above));
        Isa::store_floats(y + i, Isa::where_equal(below, Isa::zero(), Isa::mul(below, Isa::zero()),
                                                  Isa::mul(v, below)));
    }
}

template <class Isa>
void rotate_row(int64_t n, const float * x, const float * cosines, const float * sines, float * y) {
    int64_t i = 0;
    for (; i + Isa::lanes <= n; i += Isa::lanes) {
        const auto a = Isa::load_floats(x + i), b = Isa::load_floats(x + n + i);
        const auto c = Isa::load_floats(cosines + i), s = Isa::load_floats(sines + i);
        Isa::store_floats(y + i, Isa::fnma(b, s, Isa::mul(a, c)));
        Isa::store_floats(y + n + i, Isa::fma(b, c, Isa::mul(a, s)));
    }
    for (; i < n; i++) {
        const float a = x[i], b = x[n + i];
        y[i]     = std::fma(-b, sines[i], a * cosines[i]);
        y[n + i] = std::fma(b, cosines[i], a * sines[i]);
    }
}

template <class Isa> void hadamard_row(int64_t n, const float * x, float * y) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(n));
    for (int64_t i = 0; i < n; i += Isa::lanes) {
        Isa::store_floats(y + i, Isa::mul(Isa::load_floats(x + i), Isa::set(scale)));
    }
    for (int64_t step = 1; step < n; step *= 2) {
        for (int64_t i = 0; i < n; i += 2 * step) {
            if (step < Isa::lanes) {
                for (int64_t j = i; j < i + step; j++) {
                    const float a = y[j], b = y[j + step];
                    y[j]        = a + b;
                    y[j + step] = a - b;
                }
                continue;
            }
            for (int64_t j = i; j < i + step; j += Isa::lanes) {
                const auto a = Isa::load_floats(y + j), b = Isa::load_floats(y + j + step);
                Isa::store_floats(y + j, Isa::add(a, b));
                Isa::store_floats(y + j + step, Isa::sub(a, b));
            }
        }
    }
}

template <class Isa> constexpr RowKernels row_kernels() {
    return {norm_row<Isa>, add_rows<Isa>,     mul_rows<Isa>,   div_rows<Isa>,    scale_row<Isa>,
            gelu_row<Isa>, gelu_erf_row<Isa>, rotate_row<Isa>, hadamard_row<Isa>};
}

}  // namespace
