#include "grid.h"

#include <cstring>

#include "ggml.h"

namespace inferos {
namespace {

const int8_t kNonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};

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

const GridType kTypes[] = {
    {GGML_TYPE_Q4_0, 32, -8, 7, nullptr, read_one_scale, write_nibbles<-8>},
    {GGML_TYPE_Q8_0, 32, -127, 127, nullptr, read_one_scale, write_bytes},
    {GGML_TYPE_IQ4_NL, 32, 0, 15, kNonlinear, read_one_scale, write_nibbles<0>},
    {GGML_TYPE_Q4_K, 256, 0, 15, nullptr, read_affine, write_q4_k},
    {GGML_TYPE_Q5_K, 256, 0, 31, nullptr, read_affine, write_q5_k},
    {GGML_TYPE_Q6_K, 256, -32, 31, nullptr, read_q6_k, write_q6_k},
    {GGML_TYPE_Q3_K, 256, -4, 3, nullptr, read_q3_k, write_q3_k},
};

}  // namespace

const GridType * grid_type(int32_t ggml_type) {
    for (const GridType & row : kTypes) {
        if (row.type == ggml_type) {
            return &row;
        }
    }
    return nullptr;
}

}  // namespace inferos
