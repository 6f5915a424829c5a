// Rows of any of the four formats. Included by one file per CPU, which gives its own copy of all.
#pragma once

#include "kquants_affine.h"
#include "kquants_symmetric.h"

namespace {

inline void quantize_blocks(const KquantRows & rows) {
    static const int kBlockBytes[] = {0, 0, 0, 110, 144, 176, 210};
    Group            group         = {};
    for (group.first = 0; group.first < rows.n_blocks; group.first += kLanes) {
        const int64_t left = rows.n_blocks - group.first;
        group.n_blocks     = left < kLanes ? int(left) : kLanes;
        group.x            = rows.x + group.first * kSuperBlock;
        uint8_t * out      = rows.out + group.first * kBlockBytes[rows.bits];
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
