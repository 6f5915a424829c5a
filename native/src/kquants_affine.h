// q4_K and q5_K: eight sub-blocks of 32 with a scale and an offset each, as ggml-quants.c quantizes
// them and ggml-common.h lays them out (block_q4_K, block_q5_K).
#pragma once

#include "kquants_group.h"
#include "kquants_search.h"

namespace {

// Byte places in the block. q4_K has no high bits.
constexpr int kAffineScales = 4, kAffineHigh = 16;

// The 6-bit scales and offsets of eight sub-blocks in twelve bytes.
inline void pack_scales(const uint8_t * scale, const uint8_t * offset, uint8_t * out) {
    for (int j = 0; j < 4; j++) {
        out[j]     = uint8_t(scale[j] | scale[j + 4] >> 4 << 6);
        out[j + 4] = uint8_t(offset[j] | offset[j + 4] >> 4 << 6);
        out[j + 8] = uint8_t((scale[j + 4] & 15) | (offset[j + 4] & 15) << 4);
    }
}

inline void unpack_scales(const uint8_t * packed, uint8_t * scale, uint8_t * offset) {
    for (int j = 0; j < 4; j++) {
        scale[j]      = packed[j] & 63;
        offset[j]     = packed[j + 4] & 63;
        scale[j + 4]  = uint8_t((packed[j + 8] & 15) | packed[j] >> 6 << 4);
        offset[j + 4] = uint8_t(packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4);
    }
}

// Levels of the chosen 6-bit scales, and the bytes.
template <int kBits> inline void finish_affine(Group & group, int block, uint8_t * out) {
    constexpr float kMost = (1 << kBits) - 1;
    uint8_t         scale[8], offset[8];
    unpack_scales(out + kAffineScales, scale, offset);
    const float   unit = get_half(out), unit_offset = get_half(out + 2);
    uint8_t *     level = group.level;
    const float * x     = group.x + block * kSuperBlock;
    for (int j = 0; j < 8; j++) {
        const float d = unit * scale[j], dm = unit_offset * offset[j];
        if (d != 0) {
            put_levels(x + 32 * j, 32, level + 32 * j,
                       [=](FloatRegister v) { return clamp(nearest((v + dm) / d), 0, kMost); });
        } else {
            const float per_unit = group.per_unit[block * 8 + j], from = group.from[block * 8 + j];
            put_levels(x + 32 * j, 32, level + 32 * j, [=](FloatRegister v) {
                return clamp(nearest(per_unit * (v - from)), 0, kMost);
            });
        }
    }
    uint8_t * high = out + kAffineHigh;
    uint8_t * low  = kBits == 5 ? high + 32 : high;
    for (int pair = 0; pair < 4; pair++) {
        const uint8_t *even = level + 64 * pair, *odd = even + 32;
        for (int i = 0; i < 32; i++) {
            low[32 * pair + i] = uint8_t((even[i] & 15) | odd[i] << 4);
        }
    }
    for (int i = 0; kBits == 5 && i < 32; i++) {
        int bits = 0;
        for (int j = 0; j < 8; j++) {
            bits |= level[32 * j + i] >> 4 << j;
        }
        high[i] = uint8_t(bits);
    }
}

// Without importance: scales as 63rds of the largest.
inline void round_affine_scales(const Group & group, int block, uint8_t * out) {
    float scale[8], offset[8], most_scale = 0, most_offset = 0;
    for (int j = 0; j < 8; j++) {
        scale[j]    = group.scale[block * 8 + j];
        offset[j]   = -group.least[block * 8 + j];
        most_scale  = scale[j] > most_scale ? scale[j] : most_scale;
        most_offset = offset[j] > most_offset ? offset[j] : most_offset;
    }
    const float per_scale  = most_scale > 0 ? 63.0f / most_scale : 0.0f;
    const float per_offset = most_offset > 0 ? 63.0f / most_offset : 0.0f;
    uint8_t     scales[8], offsets[8];
    for (int j = 0; j < 8; j++) {
        // a negative one wraps to a large byte before it is bounded, as in ggml
        const uint8_t s = uint8_t(nearest(per_scale * scale[j]));
        const uint8_t o = uint8_t(nearest(per_offset * offset[j]));
        scales[j]       = s < 63 ? s : 63;
        offsets[j]      = o < 63 ? o : 63;
    }
    put_half(out, most_scale / 63.0f);
    put_half(out + 2, most_offset / 63.0f);
    pack_scales(scales, offsets, out + kAffineScales);
}

// With importance: searched as the levels are.
template <int kBits>
inline void search_affine_scales(Group & group, uint8_t * out, int block_bytes) {
    Floats value[8], weight[8], level[2][8], unit[2];
    by_block<8>(group.weight, weight);
    by_block<8>(group.scale, value);
    unit[0] = search_positive<8>(value, weight, 63, level[0]);
    by_block<8>(group.least, value);
    for (Floats & v : value) {
        v = -v;
    }
    unit[1]              = search_positive<8>(value, weight, 63, level[1]);
    const float * units  = reinterpret_cast<const float *>(unit);
    const float * levels = reinterpret_cast<const float *>(level);
    for (int b = 0; b < group.n_blocks; b++) {
        uint8_t scales[8], offsets[8];
        for (int j = 0; j < 8; j++) {
            scales[j]  = uint8_t(levels[j * kLanes + b]);
            offsets[j] = uint8_t(levels[(8 + j) * kLanes + b]);
            // ggml bounds q5_K's alone
            if (kBits == 5) {
                scales[j]  = scales[j] < 63 ? scales[j] : 63;
                offsets[j] = offsets[j] < 63 ? offsets[j] : 63;
            }
        }
        put_half(out + b * block_bytes, units[b]);
        put_half(out + b * block_bytes + 2, units[kLanes + b]);
        pack_scales(scales, offsets, out + b * block_bytes + kAffineScales);
    }
}

template <int kBits>
inline void quantize_affine(const KquantRows & rows, Group & group, uint8_t * out) {
    constexpr int   kBlockBytes = kBits == 5 ? 176 : 144;
    constexpr int   kMost       = (1 << kBits) - 1;
    constexpr Steps kPlain      = kBits == 5 ? Steps{-0.5f, 0.1f, 15} : Steps{-1.0f, 0.1f, 20};
    constexpr Steps kWeighted   = {-0.9f, 0.05f, 36};
    float           variance[kLanes];
    if (rows.importance) {
        variances(group, variance);
    }
    each_sub_block<32>(rows, group, variance,
                       [&](int first, const Floats * x, const Floats * importance, Floats sigma2) {
                           Floats w[32], sum = all(0);
                           if (rows.importance) {
                               for (int i = 0; i < 32; i++) {
                                   w[i] = importance[i] * square_root(sigma2 + x[i] * x[i]);
                                   sum  = sum + w[i];
                               }
                           } else {
                               for (int i = 0; i < 32; i++) {
                                   sum = sum + x[i] * x[i];
                               }
                               const Floats typical = square_root(sum / all(32));
                               for (int i = 0; i < 32; i++) {
                                   w[i] = typical + magnitude(x[i]);
                               }
                           }
                           const Affine found =
                               search_affine<32>(x, w, kMost, rows.importance ? kWeighted : kPlain);
                           store(group.scale + first, found.scale);
                           store(group.least + first, found.least);
                           store(group.per_unit + first, found.per_unit);
                           store(group.from + first, found.from);
                           store(group.weight + first, sum);
                       });
    if (rows.importance) {
        search_affine_scales<kBits>(group, out, kBlockBytes);
    }
    for (int b = 0; b < group.n_blocks; b++) {
        if (!rows.importance) {
            round_affine_scales(group, b, out + b * kBlockBytes);
        }
        finish_affine<kBits>(group, b, out + b * kBlockBytes);
    }
}

}  // namespace
