// Rows of a KV cache from one type to another: widen to float32, undo or apply llama.cpp's
// Walsh-Hadamard rotation, narrow as our backend does when it writes a row (cache_rows.h).
#include "cache_rows.h"
#include "cpu_features.h"
#include "inferos.h"
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <vector>

#include "ggml.h"
#include "ggml-cpu.h"

namespace {

// a power of two, so that a head is a whole number of rotations
constexpr int32_t kLargestRotation = 1 << 16;

// Rows that a thread takes at a time: long enough to forget the cost of taking them.
constexpr int64_t kChunkValues = 64 * 1024;

// Multiplies every run of `size` values by the orthonormal Hadamard matrix of natural order, which
// is its own inverse: the matrix of ggml_gen_hadamard in llama-kv-cache.cpp.
[[gnu::always_inline]] inline void rotate_runs(float * values, int64_t n, int32_t size) {
    const float scale = 1.0f / std::sqrt(float(size));
    for (float * run = values; run < values + n; run += size) {
        // steps of 1, 2 and 4, in registers
        for (int32_t i = 0; i < size; i += 8) {
            float *     v  = run + i;
            const float a0 = v[0] + v[1], a1 = v[0] - v[1], a2 = v[2] + v[3], a3 = v[2] - v[3];
            const float a4 = v[4] + v[5], a5 = v[4] - v[5], a6 = v[6] + v[7], a7 = v[6] - v[7];
            const float b0 = a0 + a2, b1 = a1 + a3, b2 = a0 - a2, b3 = a1 - a3;
            const float b4 = a4 + a6, b5 = a5 + a7, b6 = a4 - a6, b7 = a5 - a7;
            v[0] = scale * (b0 + b4), v[1] = scale * (b1 + b5);
            v[2] = scale * (b2 + b6), v[3] = scale * (b3 + b7);
            v[4] = scale * (b0 - b4), v[5] = scale * (b1 - b5);
            v[6] = scale * (b2 - b6), v[7] = scale * (b3 - b7);
        }
        for (int32_t step = 8; step < size; step *= 2) {
            for (int32_t i = 0; i < size; i += 2 * step) {
                float * __restrict low  = run + i;
                float * __restrict high = run + i + step;
                for (int32_t j = 0; j < step; j++) {
                    const float a = low[j], b = high[j];
                    low[j]  = a + b;
                    high[j] = a - b;
                }
            }
        }
    }
}

void rotate_anywhere(float * values, int64_t n, int32_t size) {
    rotate_runs(values, n, size);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] void rotate_avx2(float * values, int64_t n, int32_t size) {
    rotate_runs(values, n, size);
}
#else
constexpr auto rotate_avx2 = rotate_anywhere;
#endif

void rotate(float * values, int64_t n, int32_t size) {
    (inferos::cpu_features().avx2 ? rotate_avx2 : rotate_anywhere)(values, n, size);
}

bool is_known(int32_t type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q4_0: return true;
        default: return false;
    }
}

bool divides(int32_t rotation, int64_t n) {
    if (rotation == 0) {
        return true;
    }
    const bool power =
        rotation >= 8 && rotation <= kLargestRotation && (rotation & (rotation - 1)) == 0;
    return power && n % rotation == 0;
}

int32_t check(const inferos_kv_part & part) {
    if (!is_known(part.src_type) || !is_known(part.dst_type)) {
        return INFEROS_BAD_TYPE;
    }
    const int64_t n = part.n_per_row;
    if (n <= 0 || part.n_rows < 0 || n % ggml_blck_size(static_cast<ggml_type>(part.src_type)) ||
        n % ggml_blck_size(static_cast<ggml_type>(part.dst_type)) ||
        !divides(part.src_rotation, n) || !divides(part.dst_rotation, n)) {
        return INFEROS_BAD_SHAPE;
    }
    return INFEROS_OK;
}

void widen(const char * src, int32_t type, float * dst, int64_t n) {
    if (type == GGML_TYPE_F32) {
        memcpy(dst, src, n * sizeof(float));
    } else if (type == GGML_TYPE_F16) {
        ggml_cpu_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t *>(src), dst, n);
    } else if (type == GGML_TYPE_BF16) {
        ggml_cpu_bf16_to_fp32(reinterpret_cast<const ggml_bf16_t *>(src), dst, n);
    } else {
        ggml_get_type_traits(static_cast<ggml_type>(type))->to_float(src, dst, n);
    }
}

void reencode(const inferos_kv_part & part, int64_t first, int64_t n_rows, float * wide) {
    const int64_t n        = part.n_per_row;
    const size_t  src_size = ggml_row_size(static_cast<ggml_type>(part.src_type), n);
    const size_t  dst_size = ggml_row_size(static_cast<ggml_type>(part.dst_type), n);
    const char *  src      = static_cast<const char *>(part.src) + first * src_size;
    char *        dst      = static_cast<char *>(part.dst) + first * dst_size;
    if (part.src_type == part.dst_type && part.src_rotation == part.dst_rotation) {
        memcpy(dst, src, n_rows * src_size);
        return;
    }
    for (int64_t r = 0; r < n_rows; r++, src += src_size, dst += dst_size) {
        widen(src, part.src_type, wide, n);
        if (part.src_rotation != part.dst_rotation) {
            if (part.src_rotation) {
                rotate(wide, n, part.src_rotation);
            }
            if (part.dst_rotation) {
                rotate(wide, n, part.dst_rotation);
            }
        }
        inferos::narrow_cache_row(wide, part.dst_type, dst, n);
    }
}

// A run of rows of one part.
struct Chunk {
    const inferos_kv_part * part;
    int64_t                 first;
    int64_t                 n_rows;
};

void run(const std::vector<Chunk> & chunks, std::atomic<size_t> & next, float * wide) {
    for (;;) {
        const size_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= chunks.size()) {
            return;
        }
        reencode(*chunks[i].part, chunks[i].first, chunks[i].n_rows, wide);
    }
}

}  // namespace

INFEROS_API int32_t inferos_kv_reencode(const inferos_kv_part * parts, int64_t n_parts,
                                        int32_t n_threads) {
    int64_t widest = 1;
    for (int64_t i = 0; i < n_parts; i++) {
        const int32_t status = check(parts[i]);
        if (status != INFEROS_OK) {
            return status;
        }
        widest = std::max(widest, parts[i].n_per_row);
    }
    // fills the table that conversions from F16 read on processors without an instruction for it
    ggml_cpu_init();
    try {
        std::vector<Chunk> chunks;
        for (int64_t i = 0; i < n_parts; i++) {
            const int64_t rows = std::max<int64_t>(1, kChunkValues / parts[i].n_per_row);
            for (int64_t first = 0; first < parts[i].n_rows; first += rows) {
                chunks.push_back({&parts[i], first, std::min(rows, parts[i].n_rows - first)});
            }
        }
        const int64_t n_workers =
            std::max<int64_t>(1, std::min<int64_t>(n_threads, int64_t(chunks.size())));
        std::unique_ptr<float[]> wide(new float[n_workers * widest]);
        std::atomic<size_t> next{0};
        inferos::in_parallel(n_workers, [&chunks, &next, &wide, widest](int64_t i) {
            run(chunks, next, wide.get() + i * widest);
        });
    } catch (const std::exception &) {
        return INFEROS_NO_MEMORY;
    }
    return INFEROS_OK;
}
