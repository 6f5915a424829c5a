// Columns of activations into tiles: the integers and scales of ggml's quantize_row_q8_0.
#pragma once

#include "kernels.h"

namespace {

// Block: 32 values in the registers of an instruction set, with
//     float largest()        the largest magnitude; compared as integers, NaN is the largest of all
//     float as_half(v)       v rounded to float16
//     void  quantize(inverse, quants, sums)
//                            the values times `inverse` as 32 int8, -127 for what is no number then
//                            (the scale alone says what it was), and the sums of either half
template <class Block>
void quantize_columns(const float * x, int64_t n_blocks, int32_t offset, bool split, int32_t width,
                      int32_t column, uint8_t * tile) {
    using inferos::kernels::kBlock;
    using inferos::kernels::kColumnBytes;
    for (int64_t b = 0; b < n_blocks; b++, x += kBlock) {
        const Block values(x);
        const float amax  = values.largest();
        const float scale = Block::as_half(amax / 127.0f);
        uint8_t *   block = tile + b * width * static_cast<int64_t>(kColumnBytes);
        int32_t     sums[2];
        values.quantize(amax != 0.0f ? 127.0f / amax : 0.0f, block + kBlock * column, sums);
        const int32_t all       = sums[0] + sums[1];
        int32_t       starts[2] = {-offset * (split ? sums[0] : all), -offset * sums[1]};
        const float   sum       = scale * static_cast<float>(split ? sums[0] : all);
        if (split && offset == 0) {
            const float second = scale * static_cast<float>(sums[1]);
            __builtin_memcpy(&starts[1], &second, 4);
        }
        uint8_t * rest = block + kBlock * width;
        __builtin_memcpy(rest + 4 * column, &scale, 4);
        __builtin_memcpy(rest + 4 * (width + column), &starts[0], 4);
        __builtin_memcpy(rest + 4 * (2 * width + column), &starts[1], 4);
        __builtin_memcpy(rest + 4 * (3 * width + column), &sum, 4);
    }
}

}  // namespace
