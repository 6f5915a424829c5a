#include "columns.h"

#include <new>

#include "ggml-cpu.h"

namespace inferos::kernels {

bool has_dot_product(ggml_type type) {
    const auto * traits = ggml_get_type_traits_cpu(type);
    if (traits == nullptr || traits->vec_dot == nullptr) {
        return false;
    }
    return traits->vec_dot_type == GGML_TYPE_F32 ||
           ggml_get_type_traits_cpu(traits->vec_dot_type)->from_float != nullptr;
}

bool mul_columns(ggml_type type, const MulMat & job, int n_threads, Scratch & scratch) {
    const auto *    traits      = ggml_get_type_traits_cpu(type);
    const ggml_type column_type = traits->vec_dot_type;
    const bool      is_float    = column_type == GGML_TYPE_F32;
    const auto      from_float  = ggml_get_type_traits_cpu(column_type)->from_float;
    const size_t    n_bytes =
        is_float ? 0 : (ggml_row_size(column_type, job.n_per_row) + kLine - 1) / kLine * kLine;
    uint8_t * quantized = nullptr;
    try {
        quantized = scratch.get(static_cast<size_t>(job.n_columns) * n_bytes + kLine);
    } catch (const std::bad_alloc &) {
        return false;
    }
    const auto column = [&](int64_t c) {
        return is_float ? static_cast<const void *>(job.x + static_cast<size_t>(c) * job.x_stride)
                        : quantized + static_cast<size_t>(c) * n_bytes;
    };
    Phase quantizing(is_float ? 0 : job.n_columns);
    Queue queue(job.n_rows, n_threads);

#pragma omp parallel num_threads(n_threads)
    {
        quantizing.run([&](int64_t c) {
            from_float(job.x + static_cast<size_t>(c) * job.x_stride,
                       quantized + static_cast<size_t>(c) * n_bytes, job.n_per_row);
        });
        int64_t first = 0, end = 0;
        while (queue.claim(first, end)) {
            for (int64_t r = first; r < end; r++) {
                // from memory once, then from the first cache for the other columns
                const uint8_t * row = job.weights + static_cast<size_t>(r) * job.row_stride;
                for (int64_t c = 0; c < job.n_columns; c++) {
                    traits->vec_dot(static_cast<int>(job.n_per_row),
                                    job.out + static_cast<size_t>(c) * job.out_stride + r, 0, row,
                                    0, column(c), 0, 1);
                }
            }
        }
    }
    return true;
}

}  // namespace inferos::kernels
