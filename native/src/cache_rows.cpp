// ggml's q4_0 divides a block by an eighth of its largest value. On the rotated rows of a cache,
// which are nearly Gaussian, the best of three divisors, each with the scale of least squares for its
// codes, has 10 % less squared error. The order of every sum is fixed, so all CPUs write equal rows.
#include "cache_rows.h"

#include "cpu_features.h"

#include <algorithm>
#include <cstring>

#include "ggml.h"
#include "ggml-cpu.h"

#define ALWAYS_INLINE [[gnu::always_inline]] inline

namespace {

constexpr float kMostHalf = 65504.0f;  // the largest float16

constexpr int kValues  = 32;  // of a block
constexpr int kVectors = 4;   // of a block

typedef float   Floats __attribute__((vector_size(kValues / kVectors * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kValues / kVectors * sizeof(int32_t))));

// ggml's block_q4_0: value i in the low half of byte i, value i + 16 in the high one, less 8.
struct Block {
    ggml_fp16_t scale;
    uint8_t     codes[kValues / 2];
};
static_assert(sizeof(Block) == 18, "as ggml stores it");

struct Coded {
    Ints  codes[kVectors];  // 0 to 15
    float scale;            // as the block stores it
    float error;            // squared, less that of a block of zeros
};

ALWAYS_INLINE float sum_of(const Floats & v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// The value of the largest size, with its sign.
ALWAYS_INLINE float largest_of(const Floats * values) {
    Floats high{}, low{};
    for (int i = 0; i < kVectors; i++) {
        high = values[i] > high ? values[i] : high;
        low  = values[i] < low ? values[i] : low;
    }
    float highest = 0.0f, lowest = 0.0f;
    for (int i = 0; i < kValues / kVectors; i++) {
        highest = std::max(highest, high[i]);
        lowest  = std::min(lowest, low[i]);
    }
    return highest > -lowest ? highest : lowest;
}

// The codes of values / divisor, and the scale that suits them best.
ALWAYS_INLINE void code(const Floats * values, float divisor, Coded & coded) {
    const float  inverse = divisor != 0.0f ? 1.0f / divisor : 0.0f;
    const Floats least{}, most = least + 15.0f;
    Floats       products{}, squares{};
    for (int i = 0; i < kVectors; i++) {
        Floats place       = values[i] * inverse + 8.5f;
        place              = place < most ? place : most;  // what is no number, too
        place              = place > least ? place : least;
        coded.codes[i]     = __builtin_convertvector(place, Ints);
        const Floats whole = __builtin_convertvector(coded.codes[i], Floats) - 8.0f;
        products += values[i] * whole;
        squares += whole * whole;
    }
    const float product = sum_of(products), square = sum_of(squares);
    const float best  = square != 0.0f ? product / square : 0.0f;
    const float scale = std::max(std::min(best, kMostHalf), -kMostHalf);
    coded.scale       = ggml_fp16_to_fp32(ggml_fp32_to_fp16(scale));
    coded.error       = coded.scale * (coded.scale * square - 2.0f * product);
}

ALWAYS_INLINE void narrow_blocks(const float * from, Block * blocks, int64_t n) {
    for (int64_t b = 0; b < n / kValues; b++, from += kValues) {
        Floats values[kVectors];
        std::memcpy(values, from, sizeof values);
        const float largest = largest_of(values);
        Coded       best, other;
        code(values, largest / -8.0f, best);
        for (const float part : {-7.4f, -8.6f}) {
            code(values, largest / part, other);
            if (other.error < best.error) {
                best = other;
            }
        }
        blocks[b].scale = ggml_fp32_to_fp16(best.scale);
        int32_t codes[kValues];
        std::memcpy(codes, best.codes, sizeof codes);
        for (int i = 0; i < kValues / 2; i++) {
            blocks[b].codes[i] = static_cast<uint8_t>(codes[i] | codes[i + kValues / 2] << 4);
        }
    }
}

void narrow_anywhere(const float * values, Block * blocks, int64_t n) {
    narrow_blocks(values, blocks, n);
}

#if defined(__x86_64__)
// without fused products, which would round differently
[[gnu::target("avx2")]] void narrow_avx2(const float * values, Block * blocks, int64_t n) {
    narrow_blocks(values, blocks, n);
}
#else
constexpr auto narrow_avx2 = narrow_anywhere;
#endif

}  // namespace

namespace inferos {

void narrow_cache_row(const float * values, int32_t type, void * row, int64_t n) {
    if (type == GGML_TYPE_F32) {
        std::memcpy(row, values, static_cast<size_t>(n) * sizeof(float));
    } else if (type == GGML_TYPE_Q4_0) {
        (cpu_features().avx2 ? narrow_avx2 : narrow_anywhere)(values, static_cast<Block *>(row), n);
    } else {
        ggml_get_type_traits_cpu(static_cast<ggml_type>(type))->from_float(values, row, n);
    }
}

}  // namespace inferos
