// The blocks that a sweep writes, as grids: which values a block's scales allow, and how codes lie in
// its bytes. Layouts: ggml-common.h and the dequantize_row functions of ggml-quants.c in ggml.
#pragma once

#include <stdint.h>

namespace inferos {

// Values of the largest block.
constexpr int kMostBlock = 256;

// Column i of a block can be scale[i] * code - offset[i]; code is one of low..high, or table[0..15].
struct Grid {
    float scale[kMostBlock];
    float offset[kMostBlock];
};

struct GridType {
    int32_t        type;   // of ggml
    int            block;  // values
    int            low, high;
    const int8_t * table;                              // null, or what a code of 0..15 stands for
    void (*read)(const uint8_t * bytes, Grid & grid);  // from a block's scales
    void (*write)(const int16_t * codes, uint8_t * bytes);  // codes, leaving the scales
};

// Null: no sweep writes that type.
const GridType * grid_type(int32_t ggml_type);

}  // namespace inferos
