// The searches for the scale of a block of values, one block per lane. What they compute, and the
// order in which they add, is that of ggml-quants.c: make_qkx2_quants and make_qkx3_quants
// (search_affine), make_qx_quants (search_symmetric), make_q3_quants (refine_symmetric) and
// make_qp_quants (search_positive). A level is the whole number that stands for a value.
#pragma once

#include "kquants_lanes.h"

namespace {

// below this, ggml takes a block for zeros
constexpr float kNothing = 1e-15f;

// Candidate scales: nmax + first + by * i levels span the values, for i from 0 to last.
struct Steps {
    float first, by;
    int   last;
};

// value ~ scale * level + least; level = nearest(per_unit * (value - from)), within its bounds.
struct Affine {
    Floats scale, least, per_unit, from;
};

// The weighted squared error of given levels.
template <int N>
inline Floats affine_error(const Floats * x, const Floats * w, const Floats * level, Floats scale,
                           Floats least) {
    Floats error = all(0);
    for (int i = 0; i < N; i++) {
        const Floats difference = scale * level[i] + least - x[i];
        error                   = error + w[i] * (difference * difference);
    }
    return error;
}

// Levels 0 to nmax above an offset that is never positive: a weighted least squares fit to the
// levels of each step; the fit of the least error wins. A step rounds from the best offset so far.
template <int N>
inline Affine search_affine(const Floats * x, const Floats * w, int nmax, Steps steps) {
    Floats min = x[0], max = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < N; i++) {
        min   = minimum(x[i], min);
        max   = maximum(x[i], max);
        sum_w = sum_w + w[i];
        sum_x = sum_x + w[i] * x[i];
    }
    min              = select(min > all(0), all(0), min);
    const Ints empty = max == min;

    Floats level[N];
    Floats per_unit = all(float(nmax)) / (max - min);
    for (int i = 0; i < N; i++) {
        level[i] = clamp(nearest(per_unit * (x[i] - min)), 0, float(nmax));
    }
    Affine best       = {all(1) / per_unit, min, per_unit, min};
    Floats best_error = affine_error<N>(x, w, level, best.scale, best.least);
    for (int step = 0; step <= steps.last; step++) {
        per_unit     = all(steps.first + steps.by * float(step) + float(nmax)) / (max - best.least);
        Floats sum_l = all(0), sum_ll = all(0), sum_lx = all(0);
        for (int i = 0; i < N; i++) {
            const Floats l  = clamp(nearest(per_unit * (x[i] - best.least)), 0, float(nmax));
            const Floats wl = w[i] * l;
            level[i]        = l;
            sum_l           = sum_l + wl;
            sum_ll          = sum_ll + wl * l;
            sum_lx          = sum_lx + wl * x[i];
        }
        const Floats determinant = sum_w * sum_ll - sum_l * sum_l;
        Floats       scale       = (sum_w * sum_lx - sum_x * sum_l) / determinant;
        Floats       least       = (sum_ll * sum_x - sum_l * sum_lx) / determinant;
        const Ints   above       = least > all(0);
        if (any(above)) {
            least = select(above, all(0), least);
            scale = select(above, sum_lx / sum_ll, scale);
        }
        const Floats error  = affine_error<N>(x, w, level, scale, least);
        const Ints   better = (determinant > all(0)) & (error < best_error);
        best_error          = select(better, error, best_error);
        best.from           = select(better, best.least, best.from);
        best.per_unit       = select(better, per_unit, best.per_unit);
        best.scale          = select(better, scale, best.scale);
        best.least          = select(better, least, best.least);
    }
    // values that are all alike leave no range to divide
    return {select(empty, all(0), best.scale), select(empty, min, best.least),
            select(empty, all(0), best.per_unit), select(empty, min, best.from)};
}

// value ~ scale * level, level = nearest(per_unit * value) from -nmax to nmax - 1. A block of
// nothing has a scale and a per_unit of 0.
struct Symmetric {
    Floats scale, per_unit;
    Ints   nothing;
};

// The value of the largest magnitude, the first of several, and which lanes hold nothing.
template <int N> inline Floats extreme_of(const Floats * x, Ints & nothing) {
    Floats extreme = all(0), largest = all(0);
    for (int i = 0; i < N; i++) {
        const Floats size   = magnitude(x[i]);
        const Ints   larger = size > largest;
        largest             = select(larger, size, largest);
        extreme             = select(larger, x[i], extreme);
    }
    nothing = largest < all(kNothing);
    return extreme;
}

// Weighted least squares with the largest value near level -nmax, on either side of it.
template <int N> inline Symmetric search_symmetric(const Floats * x, const Floats * w, int nmax) {
    Ints         nothing;
    const Floats extreme = extreme_of<N>(x, nothing);
    Floats       wx[N];
    for (int i = 0; i < N; i++) {
        wx[i] = w[i] * x[i];
    }
    const float least = float(-nmax), most = float(nmax - 1);
    auto        sums = [&](Floats per_unit, Floats & sum_lx, Floats & sum_ll) {
        sum_lx = sum_ll = all(0);
        for (int i = 0; i < N; i++) {
            const Floats l = clamp(nearest(per_unit * x[i]), least, most);
            sum_lx         = sum_lx + wx[i] * l;
            sum_ll         = sum_ll + w[i] * l * l;
        }
    };
    Floats    sum_lx, sum_ll;
    Symmetric best = {all(0), all(least) / extreme, nothing};
    sums(best.per_unit, sum_lx, sum_ll);
    best.scale  = select(sum_ll != all(0), sum_lx / sum_ll, all(0));
    Floats gain = best.scale * sum_lx;
    for (int step = -9; step <= 9; step++) {
        if (step == 0) {
            continue;
        }
        const Floats per_unit = all(-(float(nmax) + 0.1f * float(step))) / extreme;
        sums(per_unit, sum_lx, sum_ll);
        const Ints better = (sum_ll > all(0)) & (sum_lx * sum_lx > gain * sum_ll);
        if (any(better)) {
            best.per_unit = select(better, per_unit, best.per_unit);
            best.scale    = select(better, sum_lx / sum_ll, best.scale);
            gain          = select(better, best.scale * sum_lx, gain);
        }
    }
    best.scale    = select(nothing, all(0), best.scale);
    best.per_unit = select(nothing, all(0), best.per_unit);
    return best;
}

// The levels of a symmetric block counted from 0; those of nothing are 0, not nmax.
inline Floats symmetric_level(Symmetric found, Floats x, int nmax) {
    const Floats level = clamp(nearest(found.per_unit * x), float(-nmax), float(nmax - 1));
    return select(found.nothing, all(0), level + all(float(nmax)));
}

// Moves one level after the other to where it serves the least squares fit (weights x * x) better,
// up to five times round. Returns the scale, and the levels counted from 0.
template <int N> inline Floats refine_symmetric(const Floats * x, int nmax, Floats * level) {
    Ints         nothing;
    const Floats per_unit = all(float(-nmax)) / extreme_of<N>(x, nothing);
    const float  least = float(-nmax), most = float(nmax - 1);
    Floats       sum_lx = all(0), sum_ll = all(0);
    for (int i = 0; i < N; i++) {
        const Floats w = x[i] * x[i];
        level[i]       = clamp(nearest(per_unit * x[i]), least, most);
        sum_lx         = sum_lx + w * x[i] * level[i];
        sum_ll         = sum_ll + w * level[i] * level[i];
    }
    for (int round = 0; round < 5; round++) {
        Ints changed = {IntRegister{}, IntRegister{}};
        for (int i = 0; i < N; i++) {
            const Floats w    = x[i] * x[i];
            Floats       lx   = sum_lx - w * x[i] * level[i];
            Floats       ll   = sum_ll - w * level[i] * level[i];
            const Floats l    = clamp(nearest(x[i] * ll / lx), least, most);
            Ints         move = (lx > all(0)) & (l != level[i]);
            lx                = lx + w * x[i] * l;
            ll                = ll + w * l * l;
            move              = move & (ll > all(0)) & (lx * lx * sum_ll > sum_lx * sum_lx * ll);
            level[i]          = select(move, l, level[i]);
            sum_lx            = select(move, lx, sum_lx);
            sum_ll            = select(move, ll, sum_ll);
            changed           = changed | move;
        }
        if (!any(changed)) {
            break;
        }
    }
    for (int i = 0; i < N; i++) {
        level[i] = select(nothing, all(0), level[i] + all(float(nmax)));
    }
    const Floats scale = select(sum_ll > all(0), sum_lx / sum_ll, all(0));
    return select(nothing, all(0), scale);
}

// value ~ scale * level, level from 0 to nmax as a byte keeps it, for values that are hardly ever
// negative: the scales of sub-blocks. Returns the scale.
template <int N>
inline Floats search_positive(const Floats * x, const Floats * w, int nmax, Floats * level) {
    const Floats most = all(float(nmax));
    Floats       max  = all(0);
    for (int i = 0; i < N; i++) {
        max = maximum(max, x[i]);
    }
    const Ints nothing  = max < all(kNothing);
    Floats     per_unit = most / max;
    auto       error_of = [&](Floats unit, bool bounded) {
        const Floats scale = all(1) / unit;
        Floats       error = all(0);
        for (int i = 0; i < N; i++) {
            const Floats whole      = nearest(unit * x[i]);
            const Floats l          = bounded ? minimum(whole, most) : as_byte(whole);
            const Floats difference = x[i] - scale * l;
            error                   = error + w[i] * difference * difference;
        }
        return error;
    };
    Floats best_error = error_of(per_unit, false);
    for (int step = -4; step <= 4; step++) {
        if (step == 0) {
            continue;
        }
        const Floats other  = all(0.1f * float(step) + float(nmax)) / max;
        const Floats error  = error_of(other, true);
        const Ints   better = error < best_error;
        best_error          = select(better, error, best_error);
        per_unit            = select(better, other, per_unit);
    }
    Floats sum_lx = all(0), sum_ll = all(0);
    for (int i = 0; i < N; i++) {
        const Floats l = minimum(nearest(per_unit * x[i]), most);
        sum_lx         = sum_lx + w[i] * x[i] * l;
        sum_ll         = sum_ll + w[i] * l * l;
        level[i]       = as_byte(l);
    }
    for (int round = 0; round < 5; round++) {
        Ints changed = {IntRegister{}, IntRegister{}};
        for (int i = 0; i < N; i++) {
            Floats       lx   = sum_lx - w[i] * x[i] * level[i];
            Floats       ll   = sum_ll - w[i] * level[i] * level[i];
            const Floats l    = minimum(nearest(x[i] * ll / lx), most);
            Ints         move = (lx > all(0)) & (ll > all(0)) & (l != level[i]);
            lx                = lx + w[i] * x[i] * l;
            ll                = ll + w[i] * l * l;
            move              = move & (lx * lx * sum_ll > sum_lx * sum_lx * ll);
            level[i]          = select(move, as_byte(l), level[i]);
            sum_lx            = select(move, lx, sum_lx);
            sum_ll            = select(move, ll, sum_ll);
            changed           = changed | move;
        }
        if (!any(changed)) {
            break;
        }
    }
    for (int i = 0; i < N; i++) {
        level[i] = select(nothing, all(0), level[i]);
    }
    const Floats scale = select(sum_ll > all(0), sum_lx / sum_ll, all(0));
    return select(nothing, all(0), scale);
}

}  // namespace
