// What the kernels and their check call of ggml, for processors that no llama.cpp was built for
// (make arm-check). Plain arithmetic from the definitions of the formats: no instruction that
// converts float16 is used, so that those of the kernels are compared with something else.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "ggml-cpu.h"
#include "ggml.h"

namespace {

constexpr int64_t kValues = 32;  // of a block of q4_0 and q8_0

// 10 bits of mantissa, 5 of exponent: nearest, ties to even
uint16_t encode_half(float value) {
    const unsigned sign = std::signbit(value) ? 0x8000 : 0;
    const double   size = std::fabs(static_cast<double>(value));
    unsigned       bits = 0;
    if (std::isnan(value)) {
        bits = 0x7e00;
    } else if (size >= 65520.0) {
        bits = 0x7c00;
    } else if (size < std::ldexp(1.0, -14)) {
        bits = static_cast<unsigned>(std::nearbyint(std::ldexp(size, 24)));
    } else {
        int          exponent = 0;
        const double mantissa = std::frexp(size, &exponent);  // 0.5 to 1
        // a mantissa that is rounded up to 2048 carries into the exponent, as it should
        bits = static_cast<unsigned>((exponent + 14) * 1024) +
               static_cast<unsigned>(std::nearbyint(mantissa * 2048)) - 1024;
    }
    return static_cast<uint16_t>(sign | bits);
}

float decode_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double    size = 0;
    if (exponent == 31) {
        size = mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                             : std::numeric_limits<double>::infinity();
    } else {
        size =
            exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    }
    return static_cast<float>((bits & 0x8000) != 0 ? -size : size);
}

void write_half(float value, uint8_t * p) {
    const uint16_t bits = encode_half(value);
    std::memcpy(p, &bits, 2);
}

float read_half(const uint8_t * p) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return decode_half(bits);
}

// The value of the largest magnitude.
float extreme(const float * x) {
    return *std::max_element(x, x + kValues,
                             [](float a, float b) { return std::fabs(a) < std::fabs(b); });
}

int nearest(float x, float scale, int least, int most) {
    return scale == 0 ? 0 : std::clamp(static_cast<int>(std::lround(x / scale)), least, most);
}

// q8_0: a float16, then 32 int8
void write_q8_0(const float * x, void * out, int64_t n) {
    auto * p = static_cast<uint8_t *>(out);
    for (int64_t i = 0; i < n; i += kValues, p += 2 + kValues) {
        const float scale = std::fabs(extreme(x + i)) / 127;
        write_half(scale, p);
        for (int64_t j = 0; j < kValues; j++) {
            p[2 + j] = static_cast<uint8_t>(nearest(x[i + j], scale, -127, 127));
        }
    }
}

void read_q8_0(const void * in, float * x, int64_t n) {
    const auto * p = static_cast<const uint8_t *>(in);
    for (int64_t i = 0; i < n; i += kValues, p += 2 + kValues) {
        for (int64_t j = 0; j < kValues; j++) {
            x[i + j] = read_half(p) * static_cast<float>(static_cast<int8_t>(p[2 + j]));
        }
    }
}

// q4_0: a float16, then 16 bytes; byte j holds value j in its low half and j + 16 in its high one
void write_q4_0(const float * x, void * out, int64_t n) {
    auto * p = static_cast<uint8_t *>(out);
    for (int64_t i = 0; i < n; i += kValues, p += 2 + kValues / 2) {
        const float scale = extreme(x + i) / -8;
        write_half(scale, p);
        for (int64_t j = 0; j < kValues / 2; j++) {
            p[2 + j] =
                static_cast<uint8_t>((nearest(x[i + j], scale, -8, 7) + 8) |
                                     (nearest(x[i + j + kValues / 2], scale, -8, 7) + 8) << 4);
        }
    }
}

void read_q4_0(const void * in, float * x, int64_t n) {
    const auto * p = static_cast<const uint8_t *>(in);
    for (int64_t i = 0; i < n; i += kValues, p += 2 + kValues / 2) {
        for (int64_t j = 0; j < kValues / 2; j++) {
            x[i + j]               = read_half(p) * static_cast<float>((p[2 + j] & 15) - 8);
            x[i + j + kValues / 2] = read_half(p) * static_cast<float>((p[2 + j] >> 4) - 8);
        }
    }
}

void write_f16(const float * x, void * out, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        write_half(x[i], static_cast<uint8_t *>(out) + 2 * i);
    }
}

void read_f16(const void * in, float * x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] = read_half(static_cast<const uint8_t *>(in) + 2 * i);
    }
}

ggml_type_traits make_traits(const char * name, int64_t values, size_t bytes, ggml_to_float_t read,
                             ggml_from_float_t write) {
    ggml_type_traits made = {};
    made.type_name        = name;
    made.blck_size        = values;
    made.type_size        = bytes;
    made.is_quantized     = values > 1;
    made.to_float         = read;
    made.from_float_ref   = write;
    return made;
}

}  // namespace

extern "C" {

float ggml_fp16_to_fp32(ggml_fp16_t bits) {
    return decode_half(bits);
}

ggml_fp16_t ggml_fp32_to_fp16(float value) {
    return encode_half(value);
}

const ggml_type_traits * ggml_get_type_traits(ggml_type type) {
    static const ggml_type_traits f32  = make_traits("f32", 1, 4, nullptr, nullptr);
    static const ggml_type_traits f16  = make_traits("f16", 1, 2, read_f16, write_f16);
    static const ggml_type_traits q4_0 = make_traits("q4_0", kValues, 18, read_q4_0, write_q4_0);
    static const ggml_type_traits q8_0 = make_traits("q8_0", kValues, 34, read_q8_0, write_q8_0);
    switch (type) {
        case GGML_TYPE_F32: return &f32;
        case GGML_TYPE_F16: return &f16;
        case GGML_TYPE_Q4_0: return &q4_0;
        case GGML_TYPE_Q8_0: return &q8_0;
        default: std::printf("no type %d in the stand-in for ggml\n", type); std::exit(1);
    }
}

const ggml_type_traits_cpu * ggml_get_type_traits_cpu(ggml_type type) {
    static ggml_type_traits_cpu made[GGML_TYPE_COUNT] = {};
    made[type].from_float                             = ggml_get_type_traits(type)->from_float_ref;
    return &made[type];
}

ggml_unary_op ggml_get_unary_op(const ggml_tensor * tensor) {
    return static_cast<ggml_unary_op>(tensor->op_params[0]);
}

size_t ggml_type_size(ggml_type type) {
    return ggml_get_type_traits(type)->type_size;
}

size_t ggml_row_size(ggml_type type, int64_t n) {
    const ggml_type_traits * traits = ggml_get_type_traits(type);
    return traits->type_size * static_cast<size_t>(n / traits->blck_size);
}

bool ggml_is_contiguous(const ggml_tensor * tensor) {
    size_t next = ggml_row_size(tensor->type, tensor->ne[0]);
    bool   good = tensor->nb[0] == ggml_type_size(tensor->type);
    for (int i = 1; i < GGML_MAX_DIMS; i++) {
        good = good && (tensor->ne[i] == 1 || tensor->nb[i] == next);
        next *= static_cast<size_t>(tensor->ne[i]);
    }
    return good;
}

bool ggml_is_empty(const ggml_tensor * tensor) {
    return std::any_of(tensor->ne, tensor->ne + GGML_MAX_DIMS, [](int64_t n) { return n == 0; });
}

bool ggml_are_same_shape(const ggml_tensor * a, const ggml_tensor * b) {
    return std::equal(a->ne, a->ne + GGML_MAX_DIMS, b->ne);
}

// from the first byte to the one behind the last
size_t ggml_nbytes(const ggml_tensor * tensor) {
    if (ggml_is_empty(tensor)) {
        return 0;
    }
    size_t n_bytes = ggml_row_size(tensor->type, tensor->ne[0]);
    for (int i = 1; i < GGML_MAX_DIMS; i++) {
        n_bytes += static_cast<size_t>(tensor->ne[i] - 1) * tensor->nb[i];
    }
    return n_bytes;
}

}  // extern "C"
