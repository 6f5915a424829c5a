// Multiplies weights in each of llama.cpp's other layouts (its extra buffer types) and compares the
// products with those of the plain layout. Run in a process of its own: a layout whose code this
// processor, or the compiler that made it, cannot do ends the process.
#include "inferos.h"

#include <cmath>
#include <memory>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

// a multiple of every block and tile there is
constexpr int64_t kNPerRow = 512, kNRows = 64;
// one column, two, and more than a tile has, with a rest: llama.cpp takes another way for each
constexpr int64_t   kColumns[] = {1, 2, 33};
constexpr ggml_type kTypes[]   = {
    GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0,   GGML_TYPE_Q2_K,   GGML_TYPE_Q4_K,
    GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
};
// Layouts round and add in their own order; a wrong product is off by its own size.
constexpr double kMostError = 1e-3;

struct Free {
    void operator()(ggml_context * c) const { ggml_free(c); }
    void operator()(ggml_backend_buffer * b) const { ggml_backend_buffer_free(b); }
    void operator()(ggml_backend * b) const { ggml_backend_free(b); }
};
using Context = std::unique_ptr<ggml_context, Free>;
using Buffer  = std::unique_ptr<ggml_backend_buffer, Free>;
using Backend = std::unique_ptr<ggml_backend, Free>;

Context new_context(size_t n_tensors) {
    const size_t size = n_tensors * ggml_tensor_overhead() + ggml_graph_overhead();
    return Context(ggml_init({size, nullptr, true}));
}

std::vector<float> some_values(int64_t n, uint32_t seed) {
    std::vector<float> values(n);
    for (float & value : values) {
        seed  = seed * 1664525u + 1013904223u;
        value = float(seed >> 8) / float(1 << 23) - 1.0f;
    }
    return values;
}

// The products (n_columns, kNRows) with weights in a layout; empty if it does not take them.
std::vector<float> multiply(ggml_backend_t cpu, ggml_backend_buffer_type_t layout, ggml_type type,
                            const std::vector<uint8_t> & rows, int64_t n_columns) {
    Context       weights = new_context(1), others = new_context(2);
    ggml_tensor * w = ggml_new_tensor_2d(weights.get(), type, kNPerRow, kNRows);
    ggml_tensor * x = ggml_new_tensor_2d(others.get(), GGML_TYPE_F32, kNPerRow, n_columns);
    ggml_tensor * y = ggml_mul_mat(others.get(), w, x);
    Buffer        empty(ggml_backend_buft_alloc_buffer(layout, 0));
    w->buffer        = empty.get();
    const bool taken = ggml_backend_dev_supports_op(ggml_backend_get_device(cpu), y);
    w->buffer        = nullptr;
    if (!taken) {
        return {};
    }
    Buffer held(ggml_backend_alloc_ctx_tensors_from_buft(weights.get(), layout));
    Buffer more(ggml_backend_alloc_ctx_tensors(others.get(), cpu));
    if (!held || !more) {
        return {};
    }
    ggml_backend_tensor_set(w, rows.data(), 0, rows.size());
    const std::vector<float> input = some_values(kNPerRow * n_columns, 7);
    ggml_backend_tensor_set(x, input.data(), 0, input.size() * sizeof(float));
    Context       nodes = new_context(0);
    ggml_cgraph * graph = ggml_new_graph(nodes.get());
    ggml_build_forward_expand(graph, y);
    std::vector<float> output(kNRows * n_columns, NAN);
    if (ggml_backend_graph_compute(cpu, graph) == GGML_STATUS_SUCCESS) {
        ggml_backend_tensor_get(y, output.data(), 0, output.size() * sizeof(float));
    }
    return output;
}

bool are_near(const std::vector<float> & got, const std::vector<float> & expected) {
    double off = 0, size = 0;
    for (size_t i = 0; i < got.size(); i++) {
        off += std::pow(double(got[i]) - expected[i], 2);
        size += std::pow(double(expected[i]), 2);
    }
    return off <= kMostError * size;  // false for NaN
}

bool is_good(ggml_backend_t cpu, ggml_backend_buffer_type_t layout, ggml_type type) {
    const std::vector<float> values = some_values(kNPerRow * kNRows, 3);
    std::vector<uint8_t>     rows(ggml_row_size(type, kNPerRow) * kNRows);
    ggml_quantize_chunk(type, values.data(), rows.data(), 0, kNRows, kNPerRow, nullptr);
    for (const int64_t n : kColumns) {
        const auto got = multiply(cpu, layout, type, rows, n);
        if (!got.empty() &&
            !are_near(got, multiply(cpu, ggml_backend_cpu_buffer_type(), type, rows, n))) {
            return false;
        }
    }
    return true;
}

}  // namespace

INFEROS_API int32_t inferos_try_layouts(void) {
    Backend cpu(ggml_backend_cpu_init());
    if (!cpu) {
        return INFEROS_NO_MEMORY;
    }
    ggml_backend_cpu_set_n_threads(cpu.get(), 1);
    ggml_backend_dev_t device = ggml_backend_get_device(cpu.get());
    const auto         extra =
        reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    for (auto * layout = extra ? extra(device) : nullptr; layout && *layout; layout++) {
        for (const ggml_type type : kTypes) {
            if (!is_good(cpu.get(), *layout, type)) {
                return INFEROS_NOT_FINITE;
            }
        }
    }
    return INFEROS_OK;
}
