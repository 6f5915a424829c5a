// The blocks that a sweep writes, as grids: which values a block's scales allow, and how codes lie in
// its bytes. Layouts: ggml-common.h and the dequantize_row functions of ggml-quants.c in ggml.
#pragma once

#include <stdint.h>

namespace inferos {

// Values of the largest block.
constexpr int kMostBlock = 256;

// Vectors of ``columns`` magnitudes that stand for as many neighbouring columns, each with a sign of
// its own; a code is twice the number of the vector, plus one if the column is negative.
constexpr int kMostColumns = 8;
constexpr int kMostVectors = 1024;

// With ``even_signs``, an even number of every 8 columns is negative: 7 bits keep their signs.
struct Codebook {
    int   n;
    int   columns;
    bool  even_signs;
    float levels[kMostColumns][kMostVectors];
};

// Column i of a block can be scale[i] * level - offset[i]; the level is a code of low..high, or
// table[0..15] of it, or what its vector in the codebook has for that column.
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
    const Codebook * (*codebook)();                         // null, or makes it at the first call
    int scale_at;         // bytes of a block before the half that all its scales contain
    int minimum_at = -1;  // and that all its offsets do, if it has some
};

// The code whose level is next to x, of a type without a codebook.
int nearest_code(const GridType & type, float x);

// Null: no sweep writes that type.
const GridType * grid_type(int32_t ggml_type);

}  // namespace inferos
