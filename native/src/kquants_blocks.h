// Rows of any of the four formats. Included by one file per CPU, which gives its own copy of all.
#pragma once

#include "kquants_affine.h"
#include "kquants_symmetric.h"

namespace {

inline void quantize_blocks(const KquantRows & rows) {
    static const int BLOCK_BYTES[] = {0, 0, 0, 110, 144, 176, 210};
    Group            group         = {};
    for (group.first = 0; group.first < rows.n_blocks; group.first += LANES) {
        const int64_t left = rows.n_blocks - group.first;
        group.n_blocks     = left < LANES ? int(left) : LANES;
        group.x            = rows.x + group.first * KQUANT_BLOCK;
        uint8_t * out      = rows.out + group.first * BLOCK_BYTES[rows.bits];
        if (rows.bits == 3) {
            (rows.importance ? quantize_q3_weighted : quantize_q3_plain)(rows, group, out);
        } else if (rows.bits == 4) {
            quantize_affine<4>(rows, group, out);
        } else if (rows.bits == 5) {
            quantize_affine<5>(rows, group, out);
        } else {
            quantize_q6(rows, group, out);
        }
    }
}

}  // namespace
