// Rows of floats in, rows of any ggml type out. A thread takes a chunk of rows at a time: widens it
// to float32 in a scratch of its own, hands it to ggml_quantize_chunk, and, if asked, reads the
// result back to measure the error while both are still in cache. The K-quants of kquants.h take
// the place of ggml's where they have its bytes.
#include "cpu_features.h"
#include "inferos.h"
#include "parallel.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <vector>

#include "ggml.h"
#include "kquants.h"

namespace {

// about 64 K values: 256 KB of float32 scratch, inside L2
constexpr int64_t kChunkValues = 64 * 1024;

bool is_source_type(int32_t type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

bool is_target_type(int32_t type) {
    if (type < 0 || type >= GGML_TYPE_COUNT) {
        return false;
    }
    return is_source_type(type) || ggml_is_quantized(static_cast<ggml_type>(type));
}

#if defined(__x86_64__) || defined(__i386__)
// ggml's own widens one value at a time
[[gnu::target("avx2,f16c")]] void widen_halves(const ggml_fp16_t * src, float * dst, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i *>(src + i));
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(halves));
    }
    ggml_fp16_to_fp32_row(src + i, dst + i, n - i);
}
#else
void widen_halves(const ggml_fp16_t * src, float * dst, int64_t n) {
    ggml_fp16_to_fp32_row(src, dst, n);
}
#endif

bool has_avx2() {
    return inferos::cpu_features().avx2 && inferos::cpu_features().f16c;
}

void widen_row(const char * src, int32_t type, float * dst, int64_t n) {
    if (type == GGML_TYPE_F32) {
        memcpy(dst, src, n * sizeof(float));
    } else if (type == GGML_TYPE_F16) {
        const auto * halves = reinterpret_cast<const ggml_fp16_t *>(src);
        (has_avx2() ? widen_halves : ggml_fp16_to_fp32_row)(halves, dst, n);
    } else {
        ggml_bf16_to_fp32_row(reinterpret_cast<const ggml_bf16_t *>(src), dst, n);
    }
}

#if defined(__x86_64__) || defined(__i386__)
// Four products at a time, each sum in the order of the plain loop: the bits are the same.
[[gnu::target("avx2")]] int64_t add_products_avx2(float * row, const float * left,
                                                  const float * right, int64_t n) {
    const __m256 a = _mm256_set1_ps(left[0]), b = _mm256_set1_ps(left[1]);
    const __m256 c = _mm256_set1_ps(left[2]), d = _mm256_set1_ps(left[3]);
    int64_t      i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 sum = _mm256_loadu_ps(row + i);
        sum        = _mm256_add_ps(sum, _mm256_mul_ps(a, _mm256_loadu_ps(right + i)));
        sum        = _mm256_add_ps(sum, _mm256_mul_ps(b, _mm256_loadu_ps(right + n + i)));
        sum        = _mm256_add_ps(sum, _mm256_mul_ps(c, _mm256_loadu_ps(right + 2 * n + i)));
        sum        = _mm256_add_ps(sum, _mm256_mul_ps(d, _mm256_loadu_ps(right + 3 * n + i)));
        _mm256_storeu_ps(row + i, sum);
    }
    return i;
}
#else
int64_t add_products_avx2(float *, const float *, const float *, int64_t) {
    return 0;
}
#endif

// Adds left (rank,) @ right (rank, n) to a row.
void add_products(float * row, const float * left, const float * right, int64_t rank, int64_t n) {
    for (int64_t k = 0; k < rank;) {
        const int64_t step = rank - k >= 4 ? 4 : 1;
        const float * from = right + k * n;
        const int64_t done =
            step == 4 && has_avx2() ? add_products_avx2(row, left + k, from, n) : 0;
        for (int64_t j = 0; j < step; j++) {
            for (int64_t i = done; i < n; i++) {
                row[i] += left[k + j] * from[j * n + i];
            }
        }
        k += step;
    }
}

// NaN, infinity, and values above `largest`.
int64_t count_unusable(const float * values, int64_t n, float largest) {
    // as integers, whose order is that of the magnitudes, so that it vectorizes under any flags
    uint32_t bound;
    memcpy(&bound, &largest, sizeof bound);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        count += (bits & 0x7fffffffu) > bound;
    }
    return count;
}

// The largest value that a target can hold: floats their own, blocks what a float16 scale spans.
float largest_value(ggml_type target) {
    if (target == GGML_TYPE_F32 || target == GGML_TYPE_BF16) {
        return std::numeric_limits<float>::max();
    }
    return 65504.0f;
}

// Independent lanes, which vectorize without leave to reorder sums. The AVX2 code below has the same
// lanes and the same bits.
constexpr int kErrorLanes = 8;

struct ErrorSums {
    double squared_error[kErrorLanes] = {};
    double squared_value[kErrorLanes] = {};
    float  largest[kErrorLanes]       = {};

    void add(int lane, float was, float is) {
        const float difference = was - is;
        squared_error[lane] += double(difference) * difference;
        squared_value[lane] += double(was) * was;
        largest[lane] = std::max(largest[lane], std::fabs(difference));
    }
};

#if defined(__x86_64__) || defined(__i386__)
[[gnu::target("avx2,f16c")]] int64_t add_error_avx2(ErrorSums & sums, const float * was,
                                                    const float * is, int64_t n) {
    __m256d error_low = _mm256_setzero_pd(), error_high = error_low;
    __m256d value_low = error_low, value_high = error_low;
    __m256  largest = _mm256_setzero_ps();
    int64_t i       = 0;
    for (; i + kErrorLanes <= n; i += kErrorLanes) {
        const __m256  before     = _mm256_loadu_ps(was + i);
        const __m256  difference = _mm256_sub_ps(before, _mm256_loadu_ps(is + i));
        const __m256d d_low      = _mm256_cvtps_pd(_mm256_castps256_ps128(difference));
        const __m256d d_high     = _mm256_cvtps_pd(_mm256_extractf128_ps(difference, 1));
        const __m256d b_low      = _mm256_cvtps_pd(_mm256_castps256_ps128(before));
        const __m256d b_high     = _mm256_cvtps_pd(_mm256_extractf128_ps(before, 1));
        error_low                = _mm256_add_pd(error_low, _mm256_mul_pd(d_low, d_low));
        error_high               = _mm256_add_pd(error_high, _mm256_mul_pd(d_high, d_high));
        value_low                = _mm256_add_pd(value_low, _mm256_mul_pd(b_low, b_low));
        value_high               = _mm256_add_pd(value_high, _mm256_mul_pd(b_high, b_high));
        largest = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), difference), largest);
    }
    _mm256_storeu_pd(sums.squared_error, error_low);
    _mm256_storeu_pd(sums.squared_error + 4, error_high);
    _mm256_storeu_pd(sums.squared_value, value_low);
    _mm256_storeu_pd(sums.squared_value + 4, value_high);
    _mm256_storeu_ps(sums.largest, largest);
    return i;
}
#else
int64_t add_error_avx2(ErrorSums &, const float *, const float *, int64_t) {
    return 0;
}
#endif

void add_error(inferos_quantize_error & error, const float * was, const float * is, int64_t n) {
    ErrorSums sums;
    int64_t   i = has_avx2() ? add_error_avx2(sums, was, is, n) : 0;
    for (; i + kErrorLanes <= n; i += kErrorLanes) {
        for (int lane = 0; lane < kErrorLanes; lane++) {
            sums.add(lane, was[i + lane], is[i + lane]);
        }
    }
    for (; i < n; i++) {
        sums.add(0, was[i], is[i]);
    }
    for (int lane = 0; lane < kErrorLanes; lane++) {
        error.sum_squared_error += sums.squared_error[lane];
        error.sum_squared_value += sums.squared_value[lane];
        error.max_abs_error = std::max(error.max_abs_error, double(sums.largest[lane]));
    }
}

struct Worker {
    const inferos_quantize_job & job;
    KquantFunction               kquant;  // null: ggml_quantize_chunk
    std::atomic<int64_t> &       next_row;
    int64_t                      chunk_rows;
    bool                         measure;
    std::unique_ptr<float[]>     wide;       // (chunk_rows, n_per_row)
    std::unique_ptr<float[]>     read_back;  // (n_per_row,)
    inferos_quantize_error       error = {};

    Worker(const inferos_quantize_job & job, KquantFunction kquant, std::atomic<int64_t> & next_row,
           int64_t chunk_rows, bool measure)
        : job(job), kquant(kquant), next_row(next_row), chunk_rows(chunk_rows), measure(measure),
          wide(new float[chunk_rows * job.n_per_row]),
          read_back(measure ? new float[job.n_per_row] : nullptr) {}

    void run() {
        const auto   target   = static_cast<ggml_type>(job.dst_type);
        const size_t src_size = ggml_row_size(static_cast<ggml_type>(job.src_type), job.n_per_row);
        const size_t dst_size = ggml_row_size(target, job.n_per_row);
        const float  largest  = largest_value(target);
        for (;;) {
            const int64_t first = next_row.fetch_add(chunk_rows, std::memory_order_relaxed);
            if (first >= job.n_rows) {
                return;
            }
            const int64_t rows = std::min(chunk_rows, job.n_rows - first);
            for (int64_t r = 0; r < rows; r++) {
                const int64_t from = job.row_order ? job.row_order[first + r] : first + r;
                float *       row  = wide.get() + r * job.n_per_row;
                widen_row(static_cast<const char *>(job.src) + from * src_size, job.src_type, row,
                          job.n_per_row);
                add_products(row, job.left + from * job.rank, job.right, job.rank, job.n_per_row);
            }
            char * out = static_cast<char *>(job.dst) + first * dst_size;
            // before ggml sees them: the i-quants abort the process on what is no number, and on
            // what a float16 scale cannot hold
            const int64_t n_bad = count_unusable(wide.get(), rows * job.n_per_row, largest);
            error.n_not_finite += n_bad;
            if (n_bad > 0) {
                memset(out, 0, rows * dst_size);
                continue;
            }
            quantize_rows(target, out, rows);
            if (measure) {
                measure_rows(target, out, dst_size, rows);
            }
        }
    }

    void quantize_rows(ggml_type target, char * out, int64_t rows) {
        if (!kquant) {
            ggml_quantize_chunk(target, wide.get(), out, 0, rows, job.n_per_row, job.importance);
            return;
        }
        const int64_t blocks = job.n_per_row / kSuperBlock;
        kquant({wide.get(), reinterpret_cast<uint8_t *>(out), job.importance, rows * blocks, blocks,
                kquant_bits(target)});
    }

    void measure_rows(ggml_type target, const char * out, size_t dst_size, int64_t rows) {
        for (int64_t r = 0; r < rows; r++) {
            const float * was = wide.get() + r * job.n_per_row;
            if (target == GGML_TYPE_F32) {
                add_error(error, was, reinterpret_cast<const float *>(out + r * dst_size),
                          job.n_per_row);
                continue;
            }
            ggml_get_type_traits(target)->to_float(out + r * dst_size, read_back.get(),
                                                   job.n_per_row);
            add_error(error, was, read_back.get(), job.n_per_row);
        }
    }
};

int32_t check(const inferos_quantize_job & job) {
    if (!is_source_type(job.src_type) || !is_target_type(job.dst_type)) {
        return INFEROS_BAD_TYPE;
    }
    const auto target = static_cast<ggml_type>(job.dst_type);
    if (target != GGML_TYPE_F32 && ggml_get_type_traits(target)->to_float == nullptr) {
        return INFEROS_BAD_TYPE;
    }
    // types that only ever hold activations have no row quantizer behind ggml_quantize_chunk
    if (target == GGML_TYPE_Q8_1 || target == GGML_TYPE_Q8_K) {
        return INFEROS_BAD_TYPE;
    }
    if (job.rank < 0 || (job.rank > 0 && (!job.left || !job.right))) {
        return INFEROS_BAD_SHAPE;
    }
    if (job.n_per_row <= 0 || job.n_rows < 0 || job.n_per_row % ggml_blck_size(target) != 0) {
        return INFEROS_BAD_SHAPE;
    }
    if (!job.row_order && job.n_rows > job.n_src_rows) {
        return INFEROS_BAD_ROW;
    }
    for (int64_t i = 0; job.row_order && i < job.n_rows; i++) {
        if (job.row_order[i] < 0 || job.row_order[i] >= job.n_src_rows) {
            return INFEROS_BAD_ROW;
        }
    }
    if (!job.importance && ggml_quantize_requires_imatrix(target)) {
        return INFEROS_NEEDS_IMPORTANCE;
    }
    if (job.kernel > INFEROS_KERNEL_GGML && !kquant_function(job.kernel, job.dst_type)) {
        return INFEROS_NO_KERNEL;
    }
    return INFEROS_OK;
}

}  // namespace

INFEROS_API int32_t inferos_quantize_rows(const inferos_quantize_job * job,
                                          inferos_quantize_error *     error) {
    const int32_t status = check(*job);
    if (status != INFEROS_OK) {
        return status;
    }
    // builds the lookup tables of the i-quants once, before the threads need them
    ggml_quantize_init(static_cast<ggml_type>(job->dst_type));

    const int64_t chunk_rows =
        std::max<int64_t>(1, std::min(job->n_rows, kChunkValues / job->n_per_row));
    const int64_t n_chunks  = (job->n_rows + chunk_rows - 1) / chunk_rows;
    const int64_t n_workers = std::max<int64_t>(1, std::min<int64_t>(job->n_threads, n_chunks));
    std::atomic<int64_t> next_row{0};
    try {
        const KquantFunction kquant = kquant_function(job->kernel, job->dst_type);
        std::vector<Worker>  workers;
        workers.reserve(n_workers);
        for (int64_t i = 0; i < n_workers; i++) {
            workers.emplace_back(*job, kquant, next_row, chunk_rows, error != nullptr);
        }
        inferos::in_parallel(n_workers, [&workers](int64_t i) { workers[i].run(); });
        for (const Worker & worker : workers) {
            if (error) {
                error->sum_squared_error += worker.error.sum_squared_error;
                error->sum_squared_value += worker.error.sum_squared_value;
                error->max_abs_error = std::max(error->max_abs_error, worker.error.max_abs_error);
                error->n_not_finite += worker.error.n_not_finite;
            }
        }
    } catch (const std::exception &) {
        return INFEROS_NO_MEMORY;
    }
    return INFEROS_OK;
}
