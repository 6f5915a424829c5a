// A group of super-blocks on its way through the stages: scales of sub-blocks, scales of those,
// levels, bytes. kLanes super-blocks go through each stage together.
#pragma once

#include "ggml.h"
#include "kquants.h"
#include "kquants_lanes.h"

namespace {

constexpr int kMostSubs = 16;  // sub-blocks of a super-block

// Index of what is per sub-block: super-block * sub-blocks of each + sub-block.
struct Group {
    const float * x;
    int           n_blocks;
    int64_t       first;  // number of the first super-block
    alignas(64) float scale[kLanes * kMostSubs];
    alignas(64) float least[kLanes * kMostSubs];
    alignas(64) float per_unit[kLanes * kMostSubs];
    alignas(64) float from[kLanes * kMostSubs];
    alignas(64) float weight[kLanes * kMostSubs];  // summed over the sub-block
    uint8_t level[kLanes * kSuperBlock];
};

// (kLanes, N) by pointers to (N, kLanes); registers may be written as the floats that they hold.
template <int N> inline void transpose(const float * const * rows, Floats * columns) {
    float * to = reinterpret_cast<float *>(columns);
    for (int lane = 0; lane < kLanes; lane++) {
        const float * row = rows[lane];
        for (int i = 0; i < N; i++) {
            to[i * kLanes + lane] = row[i];
        }
    }
}

// Twice the mean square of each super-block.
inline void variances(const Group & group, float * variance) {
    for (int b = 0; b < group.n_blocks; b += 4) {
        const float * x[4];
        float         sum[4] = {};
        for (int k = 0; k < 4; k++) {
            x[k] = group.x + (b + k < group.n_blocks ? b + k : b) * kSuperBlock;
        }
        for (int i = 0; i < kSuperBlock; i++) {
            for (int k = 0; k < 4; k++) {
                sum[k] += x[k][i] * x[k][i];
            }
        }
        for (int k = 0; k < 4 && b + k < group.n_blocks; k++) {
            variance[b + k] = 2 * sum[k] / kSuperBlock;
        }
    }
}

// Calls search(first sub-block, x, importance, variance) for kLanes sub-blocks of N at a time, each
// laid out as (N,) lanes. Past the group's end the last one fills the lanes.
template <int N, class Search>
inline void each_sub_block(const KquantRows & rows, const Group & group, const float * variance,
                           Search search) {
    constexpr int kSubs = kSuperBlock / N;
    const int     n_sub = group.n_blocks * kSubs;
    for (int first = 0; first < n_sub; first += kLanes) {
        const float *     x_rows[kLanes], *importance_rows[kLanes];
        alignas(64) float lane_variance[kLanes] = {};
        for (int lane = 0; lane < kLanes; lane++) {
            const int sub = first + lane < n_sub ? first + lane : n_sub - 1;
            x_rows[lane]  = group.x + sub * N;
            if (rows.importance) {
                const int64_t column  = (group.first + sub / kSubs) % rows.blocks_per_row;
                importance_rows[lane] = rows.importance + column * kSuperBlock + sub % kSubs * N;
                lane_variance[lane]   = variance ? variance[sub / kSubs] : 0;
            }
        }
        Floats x[N], importance[N];
        transpose<N>(x_rows, x);
        if (rows.importance) {
            transpose<N>(importance_rows, importance);
        }
        search(first, x, importance, rows.importance ? load(lane_variance) : all(0));
    }
}

// kLanes super-blocks' scales, or the like, from (kLanes, kSubs) to (kSubs, kLanes).
template <int kSubs> inline void by_block(const float * values, Floats * columns) {
    const float * rows[kLanes];
    for (int lane = 0; lane < kLanes; lane++) {
        rows[lane] = values + lane * kSubs;
    }
    transpose<kSubs>(rows, columns);
}

typedef uint8_t ByteRegister __attribute__((vector_size(kRegisterLanes)));

// Levels of n values (a multiple of a register's lanes), from what `level_of` makes of a register.
template <class LevelOf>
inline void put_levels(const float * x, int n, uint8_t * out, LevelOf level_of) {
    for (int i = 0; i < n; i += kRegisterLanes) {
        const FloatRegister level = level_of(load_register(x + i));
        const IntRegister   whole = __builtin_convertvector(level, IntRegister);
        const ByteRegister  bytes = __builtin_convertvector(whole, ByteRegister);
        memcpy(out + i, &bytes, sizeof bytes);
    }
}

inline void put_half(uint8_t * to, float value) {
    const ggml_fp16_t half = ggml_fp32_to_fp16(value);
    memcpy(to, &half, sizeof half);
}

inline float get_half(const uint8_t * from) {
    ggml_fp16_t half;
    memcpy(&half, from, sizeof half);
    return ggml_fp16_to_fp32(half);
}

}  // namespace
