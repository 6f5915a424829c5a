#include "grid.h"

#include <algorithm>
#include <cstring>

#include "ggml.h"

namespace inferos {
namespace {

const int8_t kNonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};

// A sum with it and its difference again is rounded to a whole number, halves to even.
constexpr float kRounding = 12582912.0f;

float half_at(const uint8_t * bytes) {
    ggml_fp16_t half;
    memcpy(&half, bytes, sizeof half);
    return ggml_fp16_to_fp32(half);
}

void fill(Grid & grid, int first, int n, float scale, float offset) {
    for (int i = first; i < first + n; i++) {
        grid.scale[i]  = scale;
        grid.offset[i] = offset;
    }
}

// ---- 32 values and one scale ----

void read_one_scale(const uint8_t * bytes, Grid & grid) {
    fill(grid, 0, 32, half_at(bytes), 0.0f);
}

template <int Least> void write_nibbles(const int16_t * codes, uint8_t * bytes) {
    for (int i = 0; i < 16; i++) {
        bytes[2 + i] = uint8_t((codes[i] - Least) | (codes[i + 16] - Least) << 4);
    }
}

void write_bytes(const int16_t * codes, uint8_t * bytes) {
    for (int i = 0; i < 32; i++) {
        bytes[2 + i] = uint8_t(int8_t(codes[i]));
    }
}

// ---- q4_K and q5_K: 8 sub-blocks of 32, each with a scale and a minimum of 6 bits ----

void read_affine(const uint8_t * bytes, Grid & grid) {
    const float     scale = half_at(bytes), minimum = half_at(bytes + 2);
    const uint8_t * packed = bytes + 4;
    for (int j = 0; j < 8; j++) {
        int s, m;
        if (j < 4) {
            s = packed[j] & 63;
            m = packed[j + 4] & 63;
        } else {
            s = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
            m = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
        }
        fill(grid, 32 * j, 32, scale * float(s), minimum * float(m));
    }
}

// four runs of 64 values: the low nibbles are those of the first 32
void write_low_nibbles(const int16_t * codes, uint8_t * low) {
    for (int run = 0; run < 4; run++) {
        for (int i = 0; i < 32; i++) {
            const int16_t * from = codes + 64 * run + i;
            low[32 * run + i]    = uint8_t((from[0] & 15) | (from[32] & 15) << 4);
        }
    }
}

void write_q4_k(const int16_t * codes, uint8_t * bytes) {
    write_low_nibbles(codes, bytes + 16);
}

void write_q5_k(const int16_t * codes, uint8_t * bytes) {
    write_low_nibbles(codes, bytes + 48);
    memset(bytes + 16, 0, 32);
    for (int i = 0; i < 256; i++) {
        bytes[16 + i % 32] |= uint8_t((codes[i] >> 4) << (i / 32));
    }
}

// ---- q6_K: 16 sub-blocks of 16, each with a scale of 8 bits ----

void read_q6_k(const uint8_t * bytes, Grid & grid) {
    const float scale = half_at(bytes + 208);
    for (int j = 0; j < 16; j++) {
        fill(grid, 16 * j, 16, scale * float(int8_t(bytes[192 + j])), 0.0f);
    }
}

void write_q6_k(const int16_t * codes, uint8_t * bytes) {
    for (int half = 0; half < 2; half++) {
        const int16_t * from = codes + 128 * half;
        uint8_t *       low = bytes + 64 * half, *high = bytes + 128 + 32 * half;
        for (int i = 0; i < 32; i++) {
            const int a = from[i] + 32, b = from[i + 32] + 32, c = from[i + 64] + 32,
                      d = from[i + 96] + 32;
            low[i]      = uint8_t((a & 15) | (c & 15) << 4);
            low[i + 32] = uint8_t((b & 15) | (d & 15) << 4);
            high[i]     = uint8_t(a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6);
        }
    }
}

// ---- q3_K: 16 sub-blocks of 16, each with a scale of 6 bits ----

void read_q3_k(const uint8_t * bytes, Grid & grid) {
    const float     scale  = half_at(bytes + 108);
    const uint8_t * packed = bytes + 96;
    for (int j = 0; j < 16; j++) {
        const int low  = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
        const int high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
        fill(grid, 16 * j, 16, scale * float((low | high << 4) - 32), 0.0f);
    }
}

void write_q3_k(const int16_t * codes, uint8_t * bytes) {
    memset(bytes, 0, 96);
    for (int i = 0; i < 256; i++) {
        const int code = codes[i] + 4, half = i / 128, within = i % 128;
        bytes[i % 32] |= uint8_t((code >> 2) << (i / 32));
        bytes[32 + 32 * half + within % 32] |= uint8_t((code & 3) << (2 * (within / 32)));
    }
}

// ---- q2_K: 16 sub-blocks of 16, each with a scale and a minimum of 4 bits ----

void read_q2_k(const uint8_t * bytes, Grid & grid) {
    const float scale = half_at(bytes + 80), minimum = half_at(bytes + 82);
    for (int j = 0; j < 16; j++) {
        fill(grid, 16 * j, 16, scale * float(bytes[j] & 15), minimum * float(bytes[j] >> 4));
    }
}

void write_q2_k(const int16_t * codes, uint8_t * bytes) {
    memset(bytes + 16, 0, 64);
    for (int i = 0; i < 256; i++) {
        bytes[16 + 32 * (i / 128) + i % 32] |= uint8_t(codes[i] << (2 * (i % 128 / 32)));
    }
}

// ---- iq4_xs: 8 sub-blocks of 32, each with a scale of 6 bits ----

void read_iq4_xs(const uint8_t * bytes, Grid & grid) {
    const float scale = half_at(bytes);
    const int   high  = bytes[2] | bytes[3] << 8;
    for (int j = 0; j < 8; j++) {
        const int bits = ((bytes[4 + j / 2] >> (4 * (j % 2))) & 15) | ((high >> (2 * j)) & 3) << 4;
        fill(grid, 32 * j, 32, scale * float(bits - 32), 0.0f);
    }
}

void write_iq4_xs(const int16_t * codes, uint8_t * bytes) {
    for (int j = 0; j < 8; j++) {
        for (int i = 0; i < 16; i++) {
            const int16_t * from  = codes + 32 * j + i;
            bytes[8 + 16 * j + i] = uint8_t(from[0] | from[16] << 4);
        }
    }
}

// ---- iq3_s: vectors of 4 columns, one of 512; 8 sub-blocks of 32 with a scale of 4 bits ----

void read_iq3_s(const uint8_t * bytes, Grid & grid) {
    const float scale = half_at(bytes);
    for (int j = 0; j < 8; j++) {
        const int bits = (bytes[106 + j / 2] >> (4 * (j % 2))) & 15;
        fill(grid, 32 * j, 32, scale * float(1 + 2 * bits), 0.0f);
    }
}

void write_signs(const int16_t * codes, uint8_t * signs) {
    memset(signs, 0, 32);
    for (int i = 0; i < 256; i++) {
        signs[i / 8] |= uint8_t((codes[i] & 1) << (i % 8));
    }
}

void write_iq3_s(const int16_t * codes, uint8_t * bytes) {
    memset(bytes + 66, 0, 8);
    for (int g = 0; g < 64; g++) {
        const int entry = codes[4 * g] >> 1;
        bytes[2 + g]    = uint8_t(entry & 255);
        bytes[66 + g / 8] |= uint8_t((entry >> 8) << (g % 8));
    }
    write_signs(codes, bytes + 74);
}

// ---- iq2_s: vectors of 8 columns, one of 1024; 16 sub-blocks of 16 with a scale of 4 bits ----

void read_iq2_s(const uint8_t * bytes, Grid & grid) {
    const float scale = half_at(bytes);
    for (int j = 0; j < 16; j++) {
        const int bits = (bytes[74 + j / 2] >> (4 * (j % 2))) & 15;
        fill(grid, 16 * j, 16, scale * (0.5f + float(bits)) * 0.25f, 0.0f);
    }
}

void write_iq2_s(const int16_t * codes, uint8_t * bytes) {
    memset(bytes + 66, 0, 8);
    for (int g = 0; g < 32; g++) {
        const int entry = codes[8 * g] >> 1;
        bytes[2 + g]    = uint8_t(entry & 255);
        bytes[66 + g / 4] |= uint8_t((entry >> 8) << (2 * (g % 4)));
    }
    write_signs(codes, bytes + 34);
}

// Types whose vectors have even signs keep those of 8 columns in 7 bits.
uint32_t seven_signs(const int16_t * codes) {
    uint32_t signs = 0;
    for (int i = 0; i < 7; i++) {
        signs |= uint32_t(codes[i] & 1) << i;
    }
    return signs;
}

// four times the signs of 8 columns, below the 4 bits of the sub-block's scale
void write_signs_below_scale(const int16_t * codes, uint8_t * bytes) {
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    word &= 0xf0000000u;
    for (int l = 0; l < 4; l++) {
        word |= seven_signs(codes + 8 * l) << (7 * l);
    }
    memcpy(bytes, &word, sizeof word);
}

// ---- iq3_xxs: vectors of 4 columns, one of 256; 8 sub-blocks of 32 with a scale of 4 bits ----

void read_iq3_xxs(const uint8_t * bytes, Grid & grid) {
    const float scale = half_at(bytes);
    for (int j = 0; j < 8; j++) {
        fill(grid, 32 * j, 32, scale * (0.5f + float(bytes[69 + 4 * j] >> 4)) * 0.5f, 0.0f);
    }
}

void write_iq3_xxs(const int16_t * codes, uint8_t * bytes) {
    for (int g = 0; g < 64; g++) {
        bytes[2 + g] = uint8_t(codes[4 * g] >> 1);
    }
    for (int j = 0; j < 8; j++) {
        write_signs_below_scale(codes + 32 * j, bytes + 66 + 4 * j);
    }
}

// ---- iq2_xs: vectors of 8 columns, one of 512; 16 sub-blocks of 16 with a scale of 4 bits ----

void read_iq2_xs(const uint8_t * bytes, Grid & grid) {
    const float scale = half_at(bytes);
    for (int j = 0; j < 16; j++) {
        const int bits = (bytes[66 + j / 2] >> (4 * (j % 2))) & 15;
        fill(grid, 16 * j, 16, scale * (0.5f + float(bits)) * 0.25f, 0.0f);
    }
}

void write_iq2_xs(const int16_t * codes, uint8_t * bytes) {
    for (int g = 0; g < 32; g++) {
        const uint32_t word  = uint32_t(codes[8 * g] >> 1) | seven_signs(codes + 8 * g) << 9;
        bytes[2 + 2 * g]     = uint8_t(word & 255);
        bytes[2 + 2 * g + 1] = uint8_t(word >> 8);
    }
}

// ---- iq2_xxs: vectors of 8 columns, one of 256; 8 sub-blocks of 32 with a scale of 4 bits ----

void read_iq2_xxs(const uint8_t * bytes, Grid & grid) {
    const float scale = half_at(bytes);
    for (int j = 0; j < 8; j++) {
        fill(grid, 32 * j, 32, scale * (0.5f + float(bytes[9 + 8 * j] >> 4)) * 0.25f, 0.0f);
    }
}

void write_iq2_xxs(const int16_t * codes, uint8_t * bytes) {
    for (int j = 0; j < 8; j++) {
        for (int l = 0; l < 4; l++) {
            bytes[2 + 8 * j + l] = uint8_t(codes[32 * j + 8 * l] >> 1);
        }
        write_signs_below_scale(codes + 32 * j, bytes + 6 + 8 * j);
    }
}

// The vectors that ggml knows, read from blocks that consist of them.
Codebook read_codebook(int32_t ggml_type, int n, int columns, bool even_signs) {
    const GridType &  type       = *grid_type(ggml_type);
    Codebook          book       = {n, columns, even_signs, {}};
    uint8_t           bytes[256] = {};
    float             values[kMostBlock];
    int16_t           codes[kMostBlock] = {};
    const ggml_fp16_t one               = ggml_fp32_to_fp16(1.0f);
    memcpy(bytes, &one, sizeof one);
    Grid grid;
    type.read(bytes, grid);
    for (int entry = 0; entry < n; entry++) {
        codes[0] = int16_t(entry << 1);
        type.write(codes, bytes);
        ggml_get_type_traits(static_cast<enum ggml_type>(ggml_type))
            ->to_float(bytes, values, type.block);
        for (int i = 0; i < columns; i++) {
            book.levels[i][entry] = values[i] / grid.scale[i];
        }
    }
    return book;
}

template <int32_t Type, int Vectors, int Columns, bool EvenSigns> const Codebook * codebook() {
    static const Codebook book = read_codebook(Type, Vectors, Columns, EvenSigns);
    return &book;
}

const GridType kTypes[] = {
    {GGML_TYPE_Q4_0, 32, -8, 7, nullptr, read_one_scale, write_nibbles<-8>, nullptr, 0},
    {GGML_TYPE_Q8_0, 32, -127, 127, nullptr, read_one_scale, write_bytes, nullptr, 0},
    {GGML_TYPE_IQ4_NL, 32, 0, 15, kNonlinear, read_one_scale, write_nibbles<0>, nullptr, 0},
    {GGML_TYPE_Q4_K, 256, 0, 15, nullptr, read_affine, write_q4_k, nullptr, 0, 2},
    {GGML_TYPE_Q5_K, 256, 0, 31, nullptr, read_affine, write_q5_k, nullptr, 0, 2},
    {GGML_TYPE_Q6_K, 256, -32, 31, nullptr, read_q6_k, write_q6_k, nullptr, 208},
    {GGML_TYPE_Q3_K, 256, -4, 3, nullptr, read_q3_k, write_q3_k, nullptr, 108},
    {GGML_TYPE_Q2_K, 256, 0, 3, nullptr, read_q2_k, write_q2_k, nullptr, 80, 82},
    {GGML_TYPE_IQ4_XS, 256, 0, 15, kNonlinear, read_iq4_xs, write_iq4_xs, nullptr, 0},
    {GGML_TYPE_IQ3_S, 256, 0, 0, nullptr, read_iq3_s, write_iq3_s,
     codebook<GGML_TYPE_IQ3_S, 512, 4, false>, 0},
    {GGML_TYPE_IQ2_S, 256, 0, 0, nullptr, read_iq2_s, write_iq2_s,
     codebook<GGML_TYPE_IQ2_S, 1024, 8, false>, 0},
    {GGML_TYPE_IQ3_XXS, 256, 0, 0, nullptr, read_iq3_xxs, write_iq3_xxs,
     codebook<GGML_TYPE_IQ3_XXS, 256, 4, true>, 0},
    {GGML_TYPE_IQ2_XS, 256, 0, 0, nullptr, read_iq2_xs, write_iq2_xs,
     codebook<GGML_TYPE_IQ2_XS, 512, 8, true>, 0},
    {GGML_TYPE_IQ2_XXS, 256, 0, 0, nullptr, read_iq2_xxs, write_iq2_xxs,
     codebook<GGML_TYPE_IQ2_XXS, 256, 8, true>, 0},
};

}  // namespace

int nearest_code(const GridType & type, float x) {
    if (type.table) {
        int code = 0;
        for (int i = 0; i < 15; i++) {
            code += x > 0.5f * float(type.table[i] + type.table[i + 1]);
        }
        return code;
    }
    const float within = std::min(std::max(x, float(type.low)), float(type.high));
    return int(within + kRounding - kRounding);
}

const GridType * grid_type(int32_t ggml_type) {
    for (const GridType & row : kTypes) {
        if (row.type == ggml_type) {
            return &row;
        }
    }
    return nullptr;
}

}  // namespace inferos
