// Products by a variant of one's choice, without a graph: for tests and benchmarks, and to find out
// whether it runs.
#include <cstring>
#include <new>
#include <vector>

#include "float_product.h"
#include "ggml.h"
#include "inferos.h"
#include "kernels.h"
#include "mul_mat.h"

INFEROS_API int32_t inferos_kernels_mul_mat(const char *            variant_name,
                                            const inferos_mul_mat * job) {
    using namespace inferos::kernels;
    const MulMat work = {
        static_cast<const uint8_t *>(job->weights),
        static_cast<size_t>(job->row_bytes),
        job->n_rows,
        job->n_per_row,
        job->x,
        static_cast<size_t>(job->n_per_row),
        job->out,
        static_cast<size_t>(job->n_rows),
        job->n_columns,
    };
    if (std::strcmp(variant_name, "portable") == 0) {
        return mul_mat_portable(job->type, work) ? INFEROS_OK : INFEROS_BAD_TYPE;
    }
    const Variant *    variant = variant_named(variant_name);
    const WeightType * type    = variant != nullptr ? find_type(*variant, job->type) : nullptr;
    const FloatType *  floats = variant != nullptr ? find_float_type(*variant, job->type) : nullptr;
    if (floats != nullptr && job->n_rows > 0 && job->n_per_row % kFloatUnit == 0 &&
        job->n_columns > 0 && job->n_threads > 0) {
        Scratch      unused;
        FloatProduct product(*floats, work, job->n_threads);
        return compute_alone(product, job->n_threads, unused) ? INFEROS_OK : INFEROS_NO_MEMORY;
    }
    if (type == nullptr) {
        return floats != nullptr ? INFEROS_BAD_SHAPE : INFEROS_BAD_TYPE;
    }
    if (job->n_rows < kMostRows || job->n_per_row % type->unit_values != 0 || job->n_columns < 1 ||
        job->n_threads < 1) {
        return INFEROS_BAD_SHAPE;
    }
    Scratch scratch;
    return mul_mat(*variant, *type, work, job->n_threads, scratch) ? INFEROS_OK : INFEROS_NO_MEMORY;
}

namespace inferos::kernels {
namespace {

// more than is unpacked at once, a panel that overlaps, and tiles of two widths
constexpr int64_t kTriedPerRow = 2304, kTriedRows = 72, kTriedColumns = 35;
constexpr int     kTriedThreads = 2;

std::vector<float> some_values(int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    uint32_t           seed = 1;
    for (float & value : values) {
        seed  = seed * 1664525u + 1013904223u;
        value = static_cast<float>(seed >> 8) / static_cast<float>(1 << 23) - 1.0f;
    }
    return values;
}

// Any bits, but that the float16 numbers, which begin at even bytes, are below 2.
std::vector<uint8_t> some_rows(size_t n) {
    std::vector<uint8_t> bytes(n);
    uint32_t             seed = 1;
    for (size_t i = 0; i < n; i++) {
        seed     = seed * 1664525u + 1013904223u;
        bytes[i] = static_cast<uint8_t>(seed >> 24 & (i % 2 != 0 ? 0xbfu : 0xffu));
    }
    return bytes;
}

bool is_right(const Variant & variant, const WeightType & type) {
    const auto         x    = some_values(kTriedColumns * kTriedPerRow);
    const size_t       row  = ggml_row_size(static_cast<ggml_type>(type.type), kTriedPerRow);
    const auto         rows = some_rows(row * kTriedRows);
    std::vector<float> wanted(kTriedRows * kTriedColumns), got(wanted.size());
    MulMat             job = {rows.data(),  row,           kTriedRows, kTriedPerRow, x.data(),
                              kTriedPerRow, wanted.data(), kTriedRows, kTriedColumns};
    if (!mul_mat_portable(type.type, job)) {
        return false;
    }
    job.out = got.data();
    Scratch scratch;
    return mul_mat(variant, type, job, kTriedThreads, scratch) && got == wanted;
}

}  // namespace
}  // namespace inferos::kernels

INFEROS_API int32_t inferos_kernels_try(const char * name) {
    using namespace inferos::kernels;
    const Variant * variant = variant_named(name);
    if (variant == nullptr) {
        return INFEROS_NO_KERNEL;
    }
    try {
        for (int32_t i = 0; i < variant->n_types; i++) {
            if (!is_right(*variant, variant->types[i])) {
                return INFEROS_NOT_FINITE;
            }
        }
    } catch (const std::bad_alloc &) {
        return INFEROS_NO_MEMORY;
    }
    return INFEROS_OK;
}
