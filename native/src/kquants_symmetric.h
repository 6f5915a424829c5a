// q3_K and q6_K: sixteen sub-blocks of 16 with a signed scale each, as ggml-quants.c quantizes them
// and ggml-common.h lays them out (block_q3_K, block_q6_K).
#pragma once

#include "kquants_group.h"
#include "kquants_search.h"

namespace {

// Levels counted from 0: of the rounded scales, or the search's where those are 0.
template <int kMaxLevel>
inline void put_symmetric_levels(const Group & group, int block, int sub, float d,
                                 uint8_t * level) {
    const float * x = group.x + block * kSuperBlock + 16 * sub;
    if (d != 0) {
        put_levels(x, 16, level, [=](FloatRegister v) {
            return clamp(nearest(v / d), -kMaxLevel, kMaxLevel - 1) + float(kMaxLevel);
        });
        return;
    }
    const float per_unit = group.per_unit[block * 16 + sub];
    if (per_unit == 0) {  // nothing: a finite value's is never 0
        memset(level, 0, 16);
        return;
    }
    put_levels(x, 16, level, [=](FloatRegister v) {
        return clamp(nearest(per_unit * v), -kMaxLevel, kMaxLevel - 1) + float(kMaxLevel);
    });
}

// The scale of the largest magnitude, the first of several.
inline float extreme_scale(const float * scale) {
    float extreme = 0, largest = 0;
    for (int j = 0; j < 16; j++) {
        const float size = scale[j] < 0 ? -scale[j] : scale[j];
        if (size > largest) {
            largest = size;
            extreme = scale[j];
        }
    }
    return extreme;
}

inline void finish_q6(Group & group, int block, uint8_t * out) {
    constexpr int kHigh = 128, kScales = 192, kUnit = 208, kBytes = 210;
    const float * scale   = group.scale + block * 16;
    const float   extreme = extreme_scale(scale);
    if ((extreme < 0 ? -extreme : extreme) < kNothing) {
        memset(out, 0, kBytes);
        return;
    }
    const float per_unit = -128.0f / extreme;
    put_half(out + kUnit, 1 / per_unit);
    const float unit  = get_half(out + kUnit);
    uint8_t *   level = group.level;
    for (int j = 0; j < 16; j++) {
        const int32_t whole = nearest(per_unit * scale[j]);
        const int8_t  kept  = int8_t(whole < 127 ? whole : 127);
        out[kScales + j]    = uint8_t(kept);
        put_symmetric_levels<32>(group, block, j, unit * kept, level + 16 * j);
    }
    for (int half = 0; half < 2; half++) {
        const uint8_t * l = level + 128 * half;
        for (int i = 0; i < 32; i++) {
            out[64 * half + i]         = uint8_t((l[i] & 15) | l[i + 64] << 4);
            out[64 * half + i + 32]    = uint8_t((l[i + 32] & 15) | l[i + 96] << 4);
            out[kHigh + 32 * half + i] = uint8_t(l[i] >> 4 | l[i + 32] >> 4 << 2 |
                                                 l[i + 64] >> 4 << 4 | l[i + 96] >> 4 << 6);
        }
    }
}

inline void quantize_q6(const KquantRows & rows, Group & group, uint8_t * out) {
    each_sub_block<16>(rows, group, nullptr,
                       [&](int first, const Floats * x, const Floats * importance, Floats) {
                           Floats w[16];
                           for (int i = 0; i < 16; i++) {
                               w[i] = rows.importance ? importance[i] : x[i] * x[i];
                           }
                           const Symmetric found = search_symmetric<16>(x, w, 32);
                           store(group.scale + first, found.scale);
                           store(group.per_unit + first, found.per_unit);
                       });
    for (int b = 0; b < group.n_blocks; b++) {
        finish_q6(group, b, out + b * 210);
    }
}

// The 6-bit scales of sixteen sub-blocks in twelve bytes.
inline void pack_q3_scales(const uint8_t * scale, uint8_t * out) {
    for (int j = 0; j < 8; j++) {
        out[j] = uint8_t((scale[j] & 15) | (scale[j + 8] & 15) << 4);
    }
    for (int j = 0; j < 4; j++) {
        out[j + 8] = uint8_t(scale[j] >> 4 | scale[j + 4] >> 4 << 2 | scale[j + 8] >> 4 << 4 |
                             scale[j + 12] >> 4 << 6);
    }
}

// `searched`: sub-blocks whose rounded scale is 0 keep the levels of search_symmetric; else those
// that refine_symmetric left in the group.
inline void finish_q3(Group & group, int block, const uint8_t * scale, float unit, bool searched,
                      uint8_t * out) {
    constexpr int kLow = 32, kScales = 96, kUnit = 108;
    put_half(out + kUnit, unit);
    pack_q3_scales(scale, out + kScales);
    const float kept_unit = get_half(out + kUnit);
    uint8_t *   level     = group.level + block * kSuperBlock;
    for (int j = 0; j < 16; j++) {
        const float d = kept_unit * float(int(scale[j]) - 32);
        if (d != 0 || searched) {
            put_symmetric_levels<4>(group, block, j, d, level + 16 * j);
        }
    }
    for (int i = 0; i < 32; i++) {
        int bits = 0;
        for (int j = 0; j < 8; j++) {
            bits |= level[32 * j + i] >> 2 << j;
        }
        out[i] = uint8_t(bits);
    }
    for (int half = 0; half < 2; half++) {
        const uint8_t * l = level + 128 * half;
        for (int i = 0; i < 32; i++) {
            out[kLow + 32 * half + i] = uint8_t((l[i] & 3) | (l[i + 32] & 3) << 2 |
                                                (l[i + 64] & 3) << 4 | (l[i + 96] & 3) << 6);
        }
    }
}

// Without importance: levels refined one by one, scales as 32nds of the largest.
inline void quantize_q3_plain(const KquantRows & rows, Group & group, uint8_t * out) {
    each_sub_block<16>(
        rows, group, nullptr, [&](int first, const Floats * x, const Floats *, Floats) {
            Floats level[16];
            store(group.scale + first, refine_symmetric<16>(x, 4, level));
            const float * levels = reinterpret_cast<const float *>(level);
            for (int lane = 0; lane < kLanes && first + lane < group.n_blocks * 16; lane++) {
                for (int i = 0; i < 16; i++) {
                    group.level[(first + lane) * 16 + i] = uint8_t(levels[i * kLanes + lane]);
                }
            }
        });
    for (int b = 0; b < group.n_blocks; b++) {
        const float * scale    = group.scale + b * 16;
        const float   extreme  = extreme_scale(scale);
        const float   per_unit = -32.0f / extreme;
        uint8_t       kept[16] = {};
        for (int j = 0; j < 16 && extreme != 0; j++) {
            // a byte before it is bounded, as in ggml
            kept[j] = uint8_t(clamp(int8_t(nearest(per_unit * scale[j])), -32, 31) + 32);
        }
        finish_q3(group, b, kept, extreme != 0 ? 1 / per_unit : 0.0f, false, out + b * 110);
    }
}

inline void quantize_q3_weighted(const KquantRows & rows, Group & group, uint8_t * out) {
    float variance[kLanes];
    variances(group, variance);
    each_sub_block<16>(rows, group, variance,
                       [&](int first, const Floats * x, const Floats * importance, Floats sigma2) {
                           Floats w[16], sum = all(0);
                           for (int i = 0; i < 16; i++) {
                               w[i] = importance[i] * square_root(sigma2 + x[i] * x[i]);
                               sum  = sum + w[i];
                           }
                           const Symmetric found = search_symmetric<16>(x, w, 4);
                           store(group.scale + first, found.scale);
                           store(group.per_unit + first, found.per_unit);
                           store(group.weight + first, sum);
                       });
    Floats scale[16], weight[16], level[16];
    by_block<16>(group.scale, scale);
    by_block<16>(group.weight, weight);
    const Symmetric found = search_symmetric<16>(scale, weight, 32);
    for (int j = 0; j < 16; j++) {
        level[j] = symmetric_level(found, scale[j], 32);
    }
    const float * levels = reinterpret_cast<const float *>(level);
    const float * units  = reinterpret_cast<const float *>(&found.scale);
    for (int b = 0; b < group.n_blocks; b++) {
        uint8_t kept[16];
        for (int j = 0; j < 16; j++) {
            kept[j] = uint8_t(levels[j * kLanes + b]);
        }
        finish_q3(group, b, kept, units[b], true, out + b * 110);
    }
}

}  // namespace
