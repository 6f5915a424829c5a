// One product by a variant of one's choice, without a graph: for tests and benchmarks.
#include <cstring>

#include "float_product.h"
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
