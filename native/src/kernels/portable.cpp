// The arithmetic of mul_mat in plain C++, written from the definitions of ggml's block layouts
// (ggml-common.h, dequantize_row_* in ggml-quants.c) and sharing nothing with the vector code.
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "ggml.h"
#include "grids.h"
#include "mul_mat.h"

namespace inferos::kernels {
namespace {

float half_at(const uint8_t * p) {
    ggml_fp16_t bits;
    std::memcpy(&bits, p, 2);
    return ggml_fp16_to_fp32(bits);
}

// 32 activations as integers, their sums and scale.
struct Column {
    int   quants[kBlock];
    float scale;
};

Column quantize(const float * x) {
    Column column  = {};
    float  largest = 0;
    for (int i = 0; i < kBlock; i++) {
        const float size = std::fabs(x[i]);
        largest          = size > largest || std::isnan(size) ? size : largest;
        if (std::isnan(largest)) {
            break;
        }
    }
    const float inverse = largest != 0 ? 127.0f / largest : 0.0f;
    column.scale        = ggml_fp16_to_fp32(ggml_fp32_to_fp16(largest / 127.0f));
    for (int i = 0; i < kBlock; i++) {
        const float scaled = x[i] * inverse;
        // the result for NaN does not matter, as long as it is small
        const bool fits  = scaled >= -127.5f && scaled <= 127.5f;
        column.quants[i] = fits ? static_cast<int>(std::nearbyint(scaled)) : -127;
    }
    return column;
}

// 32 signed weights of a row, with a scale for each half, and minima to take off.
struct Weights {
    int   quants[kBlock];
    float scale[2];
    float minimum[2];
    int   n_scales;  // 1: the first is for all
    int   n_minima;
};

void k_scale(const uint8_t * packed, int i, int & scale, int & minimum) {
    if (i < 4) {
        scale   = packed[i] & 63;
        minimum = packed[i + 4] & 63;
    } else {
        scale   = (packed[i + 4] & 15) | (packed[i - 4] >> 6 << 4);
        minimum = (packed[i + 4] >> 4) | (packed[i] >> 6 << 4);
    }
}

// 32 places in the list of values of iq4_nl and iq4_xs
void read_listed(const uint8_t * places, Weights & w) {
    constexpr int values[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};
    for (int j = 0; j < 16; j++) {
        w.quants[j]      = values[places[j] & 15];
        w.quants[j + 16] = values[places[j] >> 4];
    }
}

// Seven signs and the eighth, so that an even number of them are set: that of value j.
bool even_sign(uint32_t seven, int j) {
    return (j < 7 ? seven >> j & 1u : static_cast<uint32_t>(__builtin_popcount(seven)) & 1u) != 0;
}

uint32_t word_at(const uint8_t * p) {
    return static_cast<uint32_t>(p[0] | p[1] << 8 | p[2] << 16) | static_cast<uint32_t>(p[3]) << 24;
}

// A value of iq2_xxs, iq2_xs or iq2_s: number j of the eight at an entry of the list.
int of_eight(uint16_t entry, int j, bool sign) {
    const int value = kSizesIq2[entry >> 2 * j & 3];
    return sign ? -value : value;
}

// Block i of a row of a type whose signs belong to places in a list; false: an unknown type.
bool read_listed_signs(int32_t type, const uint8_t * row, int64_t i, Weights & w) {
    const int     sub  = static_cast<int>(i % 8);
    const int64_t unit = i / 8;
    switch (type) {
        case GGML_TYPE_IQ3_XXS: {
            const uint8_t * p    = row + 98 * unit;
            const uint32_t  word = word_at(p + 66 + 4 * sub);
            for (int j = 0; j < 32; j++) {
                const int value =
                    kSizesIq3Xxs[kGridIq3Xxs[p[2 + 8 * sub + j / 4]] >> (3 * (j % 4)) & 7];
                w.quants[j] = even_sign(word >> (7 * (j / 8)) & 127, j % 8) ? -value : value;
            }
            w.scale[0] = half_at(p) * (0.5f + static_cast<float>(word >> 28)) * 0.5f;
            return true;
        }
        case GGML_TYPE_IQ2_XXS: {
            const uint8_t * p    = row + 66 * unit + 2 + 8 * sub;
            const uint32_t  word = word_at(p + 4);
            for (int j = 0; j < 32; j++) {
                const bool sign = even_sign(word >> (7 * (j / 8)) & 127, j % 8);
                w.quants[j]     = of_eight(kGridIq2Xxs[p[j / 8]], j % 8, sign);
            }
            w.scale[0] = half_at(row + 66 * unit) * (0.5f + static_cast<float>(word >> 28)) * 0.25f;
            return true;
        }
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S: {
            const bool      seven = type == GGML_TYPE_IQ2_XS;
            const uint8_t * p     = row + (seven ? 74 : 82) * unit;
            for (int j = 0; j < 32; j++) {
                const int k = 4 * sub + j / 8;  // of 32 places
                if (seven) {
                    const uint32_t both = word_at(p + 2 + 2 * k) & 0xffff;
                    w.quants[j] =
                        of_eight(kGridIq2Xs[both & 511], j % 8, even_sign(both >> 9, j % 8));
                } else {
                    const int place = p[2 + k] | (p[66 + sub] >> (2 * (j / 8)) & 3) << 8;
                    w.quants[j] = of_eight(kGridIq2S[place], j % 8, (p[34 + k] >> j % 8 & 1) != 0);
                }
            }
            for (int j = 0; j < 2; j++) {
                const int four = p[(seven ? 66 : 74) + sub] >> (4 * j) & 15;
                w.scale[j]     = half_at(p) * (0.5f + static_cast<float>(four)) * 0.25f;
            }
            w.n_scales = 2;
            return true;
        }
        default: return false;
    }
}

// Block i of a row; false: an unknown type.
bool read_weights(int32_t type, const uint8_t * row, int64_t i, Weights & w) {
    w          = {};
    w.n_scales = 1;
    switch (type) {
        case GGML_TYPE_Q4_0: {
            const uint8_t * p = row + 18 * i;
            for (int j = 0; j < 16; j++) {
                w.quants[j]      = (p[2 + j] & 15) - 8;
                w.quants[j + 16] = (p[2 + j] >> 4) - 8;
            }
            w.scale[0] = half_at(p);
            return true;
        }
        case GGML_TYPE_Q8_0: {
            const uint8_t * p = row + 34 * i;
            for (int j = 0; j < 32; j++) {
                w.quants[j] = static_cast<int8_t>(p[2 + j]);
            }
            w.scale[0] = half_at(p);
            return true;
        }
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1: {
            const bool      five = type != GGML_TYPE_Q4_1, least = type != GGML_TYPE_Q5_0;
            const int64_t   head  = (least ? 4 : 2) + (five ? 4 : 0);
            const uint8_t * p     = row + (head + 16) * i;
            const uint8_t * fifth = p + head - 4;
            for (int j = 0; j < 32; j++) {
                const int nibble = j < 16 ? p[head + j] & 15 : p[head + j - 16] >> 4;
                const int top    = five ? (fifth[j / 8] >> (j % 8) & 1) * 16 : 0;
                w.quants[j]      = (nibble | top) - (least ? 0 : 16);
            }
            w.scale[0]   = half_at(p);
            w.minimum[0] = least ? -half_at(p + 2) : 0.0f;
            w.n_minima   = least ? 1 : 0;
            return true;
        }
        case GGML_TYPE_IQ4_NL: {
            const uint8_t * p = row + 18 * i;
            read_listed(p + 2, w);
            w.scale[0] = half_at(p);
            return true;
        }
        case GGML_TYPE_IQ4_XS: {
            const int       sub  = static_cast<int>(i % 8);
            const uint8_t * p    = row + 136 * (i / 8);
            const int       high = p[2] | p[3] << 8;
            const int       low  = p[4 + sub / 2] >> (sub % 2 * 4) & 15;
            read_listed(p + 8 + 16 * sub, w);
            w.scale[0] = half_at(p) * static_cast<float>((low | (high >> 2 * sub & 3) << 4) - 32);
            return true;
        }
        case GGML_TYPE_Q3_K: {
            const int       sub = static_cast<int>(i % 8);
            const uint8_t * p   = row + 110 * (i / 8);
            for (int j = 0; j < 32; j++) {
                const int low   = p[32 + 32 * (sub / 4) + j] >> (2 * (sub % 4)) & 3;
                const int third = p[j] >> sub & 1;
                w.quants[j]     = (low | third << 2) - 4;
            }
            for (int j = 0; j < 2; j++) {
                const int       k      = 2 * sub + j;  // of 16 scales
                const uint8_t * packed = p + 96;
                const int       four   = packed[k % 8] >> (k / 8 * 4) & 15;
                const int       two    = packed[8 + k % 4] >> (k / 4 * 2) & 3;
                w.scale[j] = half_at(p + 108) * static_cast<float>((four | two << 4) - 32);
            }
            w.n_scales = 2;
            return true;
        }
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K: {
            const bool      five  = type == GGML_TYPE_Q5_K;
            const int       sub   = static_cast<int>(i % 8);
            const uint8_t * p     = row + (five ? 176 : 144) * (i / 8);
            const uint8_t * low   = p + (five ? 48 : 16) + 32 * (sub / 2);
            int             scale = 0, minimum = 0;
            k_scale(p + 4, sub, scale, minimum);
            for (int j = 0; j < 32; j++) {
                const int nibble = sub % 2 == 0 ? low[j] & 15 : low[j] >> 4;
                w.quants[j]      = nibble + (five ? (p[16 + j] >> sub & 1) * 16 : 0);
            }
            w.scale[0]   = half_at(p) * static_cast<float>(scale);
            w.minimum[0] = half_at(p + 2) * static_cast<float>(minimum);
            w.n_minima   = 1;
            return true;
        }
        case GGML_TYPE_Q6_K: {
            const int       half = static_cast<int>(i % 8) / 4, sub = static_cast<int>(i % 4);
            const uint8_t * p = row + 210 * (i / 8);
            for (int j = 0; j < 32; j++) {
                const int low  = p[64 * half + 32 * (sub % 2) + j] >> (sub / 2 * 4) & 15;
                const int high = p[128 + 32 * half + j] >> (2 * sub) & 3;
                w.quants[j]    = (low | high << 4) - 32;
            }
            for (int j = 0; j < 2; j++) {
                w.scale[j] =
                    half_at(p + 208) *
                    static_cast<float>(static_cast<int8_t>(p[192 + 8 * half + 2 * sub + j]));
            }
            w.n_scales = 2;
            return true;
        }
        case GGML_TYPE_Q2_K: {
            const int       sub = static_cast<int>(i % 8);
            const uint8_t * p   = row + 84 * (i / 8);
            for (int j = 0; j < 32; j++) {
                const int two = p[16 + 32 * (sub / 4) + j] >> (2 * (sub % 4)) & 3;
                w.quants[j]   = two * (p[2 * sub + j / 16] & 15);
            }
            w.scale[0] = half_at(p + 80);
            for (int j = 0; j < 2; j++) {
                w.minimum[j] = half_at(p + 82) * static_cast<float>(p[2 * sub + j] >> 4);
            }
            w.n_minima = 2;
            return true;
        }
        case GGML_TYPE_IQ3_S: {
            const int       sub = static_cast<int>(i % 8);
            const uint8_t * p   = row + 110 * (i / 8);
            for (int j = 0; j < 32; j++) {
                const int place = p[2 + 8 * sub + j / 4] | (p[66 + sub] >> (j / 4) & 1) << 8;
                const int value = kSizesIq3S[kGridIq3S[place] >> (3 * (j % 4)) & 7];
                const int sign  = p[74 + 4 * sub + j / 8] >> (j % 8) & 1;
                w.quants[j]     = sign != 0 ? -value : value;
            }
            const int four = p[106 + sub / 2] >> (sub % 2 * 4) & 15;
            w.scale[0]     = half_at(p) * static_cast<float>(2 * four + 1);
            return true;
        }
        default: return read_listed_signs(type, row, i, w);
    }
}

int dot(const int * a, const int * b, int first, int end) {
    int sum = 0;
    for (int i = first; i < end; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

float add_block(const Weights & w, const Column & column, float sum) {
    const int middle = w.n_scales == 2 ? kBlock / 2 : kBlock;
    sum              = std::fma(static_cast<float>(dot(w.quants, column.quants, 0, middle)),
                                w.scale[0] * column.scale, sum);
    if (w.n_scales == 2) {
        sum = std::fma(static_cast<float>(dot(w.quants, column.quants, middle, kBlock)),
                       w.scale[1] * column.scale, sum);
    }
    for (int i = 0; i < w.n_minima; i++) {
        const int length = kBlock / w.n_minima;
        int       total  = 0;
        for (int j = i * length; j < (i + 1) * length; j++) {
            total += column.quants[j];
        }
        sum = std::fma(-w.minimum[i], column.scale * static_cast<float>(total), sum);
    }
    return sum;
}

}  // namespace

namespace {

constexpr int64_t kParts = 16;  // of a sum of float weights' products

float value_at(int32_t type, const uint8_t * row, int64_t i) {
    if (type == GGML_TYPE_F16) {
        return half_at(row + 2 * i);
    }
    uint32_t bits = 0;
    if (type == GGML_TYPE_BF16) {
        std::memcpy(reinterpret_cast<uint8_t *>(&bits) + 2, row + 2 * i, 2);
    } else {
        std::memcpy(&bits, row + 4 * i, 4);
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

void mul_floats(int32_t type, const MulMat & job) {
    for (int64_t c = 0; c < job.n_columns; c++) {
        const float * x = job.x + static_cast<size_t>(c) * job.x_stride;
        for (int64_t r = 0; r < job.n_rows; r++) {
            const uint8_t * row           = job.weights + static_cast<size_t>(r) * job.row_stride;
            float           parts[kParts] = {};
            for (int64_t i = 0; i < job.n_per_row; i++) {
                parts[i % kParts] = std::fma(value_at(type, row, i), x[i], parts[i % kParts]);
            }
            for (int64_t half = kParts / 2; half > 0; half /= 2) {
                for (int64_t i = 0; i < half; i++) {
                    parts[i] += parts[i + half];
                }
            }
            job.out[static_cast<size_t>(c) * job.out_stride + static_cast<size_t>(r)] = parts[0];
        }
    }
}

}  // namespace

bool mul_mat_portable(int32_t type, const MulMat & job) {
    if (type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) {
        mul_floats(type, job);
        return true;
    }
    const int64_t n_blocks = job.n_per_row / kBlock;
    try {
        std::vector<Column> column(static_cast<size_t>(n_blocks));
        for (int64_t c = 0; c < job.n_columns; c++) {
            for (int64_t i = 0; i < n_blocks; i++) {
                column[static_cast<size_t>(i)] =
                    quantize(job.x + static_cast<size_t>(c) * job.x_stride + i * kBlock);
            }
            for (int64_t r = 0; r < job.n_rows; r++) {
                const uint8_t * row = job.weights + static_cast<size_t>(r) * job.row_stride;
                float           sum = 0;
                for (int64_t i = 0; i < n_blocks; i++) {
                    Weights w;
                    if (!read_weights(type, row, i, w)) {
                        return false;
                    }
                    sum = add_block(w, column[static_cast<size_t>(i)], sum);
                }
                job.out[static_cast<size_t>(c) * job.out_stride + static_cast<size_t>(r)] = sum;
            }
        }
    } catch (const std::bad_alloc &) {
        return false;
    }
    return true;
}

}  // namespace inferos::kernels
