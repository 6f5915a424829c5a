// Rows of any bits, taken as floats, to any type, in any order of rows: refused, or written within
// the buffers; and the K-quants of every instruction set write ggml's bytes.
#include <cstdio>
#include <cstdlib>

#include "ggml.h"
#include "inferos.h"
#include "input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    Input                in        = {data, size};
    constexpr int32_t    sources[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0,
                                      -1};
    constexpr int32_t    targets[] = {GGML_TYPE_F32,
                                      GGML_TYPE_F16,
                                      GGML_TYPE_BF16,
                                      GGML_TYPE_Q8_0,
                                      GGML_TYPE_Q5_1,
                                      GGML_TYPE_Q5_0,
                                      GGML_TYPE_Q4_1,
                                      GGML_TYPE_Q4_0,
                                      GGML_TYPE_Q3_K,
                                      GGML_TYPE_Q4_K,
                                      GGML_TYPE_Q5_K,
                                      GGML_TYPE_Q6_K,
                                      GGML_TYPE_IQ4_NL,
                                      GGML_TYPE_IQ3_S,
                                      GGML_TYPE_I32,
                                      999,
                                      -1};
    constexpr int64_t    widths[]  = {32, 64, 256, 512, 33, 1, 0};
    inferos_quantize_job job       = {};
    job.src_type                   = in.pick(sources);
    job.dst_type                   = in.pick(targets);
    job.n_per_row                  = in.pick(widths);
    job.n_src_rows                 = in.byte() % 4;
    job.n_rows                     = in.byte() % 5;
    job.n_threads                  = 1;
    std::vector<int64_t> order(static_cast<size_t>(job.n_rows));
    for (auto & row : order) {
        row = static_cast<int8_t>(in.byte()) % 5;
    }
    job.row_order = in.byte() % 4 != 0 || job.n_rows > job.n_src_rows ? order.data() : nullptr;
    const bool         weighted   = in.byte() % 2 != 0;
    const auto         width      = static_cast<size_t>(job.n_per_row > 0 ? job.n_per_row : 0);
    const auto         importance = in.bytes(weighted ? width * sizeof(float) : 0);
    std::vector<float> weights(width, 1.0f);
    for (size_t i = 0; weighted && i < width; i++) {
        weights[i] = static_cast<float>(importance[4 * i]) / 16.0f;
    }
    job.importance     = weighted ? weights.data() : nullptr;
    const auto n_bytes = [&](int32_t type, int64_t n_rows) -> size_t {
        const bool known =
            type >= 0 && type < GGML_TYPE_COUNT && ggml_blck_size(static_cast<ggml_type>(type)) > 0;
        return known && width != 0 ? static_cast<size_t>(n_rows) *
                                         ggml_row_size(static_cast<ggml_type>(type), job.n_per_row)
                                   : 0;
    };
    // floats of any bits, at their alignment
    const auto         source = in.bytes(n_bytes(job.src_type, job.n_src_rows));
    std::vector<float> aligned((source.size() + 3) / 4);
    if (!source.empty()) {
        std::memcpy(aligned.data(), source.data(), source.size());
    }
    job.src = aligned.data();
    std::vector<std::vector<uint8_t>> made;
    for (int32_t kernel = INFEROS_KERNEL_GGML; kernel <= INFEROS_KERNEL_AVX512; kernel++) {
        std::vector<uint8_t>   out(n_bytes(job.dst_type, job.n_rows));
        inferos_quantize_error error = {};
        job.dst                      = out.data();
        job.kernel                   = kernel;
        const int32_t status = inferos_quantize_rows(&job, in.size % 2 != 0 ? &error : nullptr);
        if (status == INFEROS_NO_KERNEL) {
            continue;
        }
        if (status == INFEROS_OK) {
            made.push_back(out);
        }
        if (made.size() > 1 && made.front() != made.back()) {
            std::printf("kernel %d writes other bytes than ggml\n", kernel);
            std::abort();
        }
    }
    return 0;
}
