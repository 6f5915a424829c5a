// Products with weights of any bytes: every variant that runs here reads no further than the rows, and
// gives the portable path's bits wherever those are numbers.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "ggml.h"
#include "input.h"
#include "kernels.h"
#include "mul_mat.h"

using namespace inferos::kernels;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    Input                  in      = {data, size};
    constexpr int32_t      types[] = {GGML_TYPE_Q4_0,   GGML_TYPE_Q8_0,    GGML_TYPE_Q4_K,
                                      GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K,    GGML_TYPE_Q2_K,
                                      GGML_TYPE_IQ3_S,  GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ2_S,
                                      GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_XXS};
    constexpr const char * names[] = {"avx512vbmi", "avx512vnni",   "avxvnni",
                                      "avx2",       "amx-emulated", "neon"};
    const int32_t          type_id = in.pick(types);
    const char *           name    = in.pick(names);
    const Variant *        variant = in.byte() % 2 != 0 ? best_variant() : variant_named(name);
    const WeightType *     type    = variant != nullptr ? find_type(*variant, type_id) : nullptr;
    if (type == nullptr) {
        return 0;
    }
    // now and then longer rows than are fetched ahead, or more than are unpacked one by one
    const int64_t      n_units   = 1 + in.byte() % 3 + (in.byte() % 8 == 0 ? 130 : 0);
    const int64_t      n_per_row = type->unit_values * n_units;
    const int64_t      n_rows    = kMostRows + in.byte() % 20 + (in.byte() % 8 == 0 ? 300 : 0);
    const int64_t      n_columns = 1 + in.byte() % 19;
    const size_t       stride    = ggml_row_size(static_cast<ggml_type>(type_id), n_per_row);
    std::vector<float> x(static_cast<size_t>(n_columns * n_per_row));
    for (auto & value : x) {
        value = static_cast<float>(static_cast<int8_t>(in.byte())) / 8.0f;
    }
    const auto         weights = in.bytes(static_cast<size_t>(n_rows) * stride);
    std::vector<float> out(static_cast<size_t>(n_rows * n_columns)), expected(out.size());
    MulMat             job = {weights.data(), stride,
                              n_rows,         n_per_row,
                              x.data(),       static_cast<size_t>(n_per_row),
                              out.data(),     static_cast<size_t>(n_rows),
                              n_columns};
    Scratch            scratch;
    if (!mul_mat(*variant, *type, job, 1, scratch)) {
        return 0;
    }
    job.out = expected.data();
    mul_mat_portable(type_id, job);
    for (size_t i = 0; i < out.size(); i++) {
        if (std::isfinite(expected[i]) && std::memcmp(&out[i], &expected[i], sizeof(float)) != 0) {
            std::printf("%s type %d: %g, expected %g\n", variant->name, type_id, out[i],
                        expected[i]);
            std::abort();
        }
    }
    return 0;
}
