// Rows of a KV cache from any type to any other, with sizes that may not fit them: refused, or done
// within the buffers.
#include "ggml.h"
#include "inferos.h"
#include "input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    Input                             in          = {data, size};
    constexpr int32_t                 types[]     = {GGML_TYPE_F32,
                                                     GGML_TYPE_F16,
                                                     GGML_TYPE_BF16,
                                                     GGML_TYPE_Q8_0,
                                                     GGML_TYPE_Q5_1,
                                                     GGML_TYPE_Q5_0,
                                                     GGML_TYPE_Q4_1,
                                                     GGML_TYPE_Q4_0,
                                                     GGML_TYPE_Q4_K,
                                                     GGML_TYPE_I32,
                                                     -1,
                                                     999};
    constexpr int32_t                 rotations[] = {0, 0, 8, 32, 64, 128, 1, 7, 48, -8, 1 << 17};
    constexpr int64_t                 widths[]    = {32, 64, 96, 128, 256, 1, 0, -32, 33};
    std::vector<inferos_kv_part>      parts(1 + in.byte() % 3);
    std::vector<std::vector<uint8_t>> memory;
    for (auto & part : parts) {
        part               = {};
        part.src_type      = in.pick(types);
        part.dst_type      = in.pick(types);
        part.src_rotation  = in.pick(rotations);
        part.dst_rotation  = in.pick(rotations);
        part.n_per_row     = in.pick(widths);
        part.n_rows        = in.byte() % 9;
        const auto n_bytes = [&](int32_t type) -> size_t {
            if (type < 0 || type >= GGML_TYPE_COUNT || part.n_per_row <= 0 ||
                ggml_blck_size(static_cast<ggml_type>(type)) == 0) {
                return 0;
            }
            return static_cast<size_t>(part.n_rows) *
                   ggml_row_size(static_cast<ggml_type>(type), part.n_per_row);
        };
        memory.push_back(in.bytes(n_bytes(part.src_type)));
        part.src = memory.back().data();
        memory.emplace_back(n_bytes(part.dst_type));
        part.dst = memory.back().data();
    }
    inferos_kv_reencode(parts.data(), static_cast<int64_t>(parts.size()), 1 + in.byte() % 2);
    return 0;
}
