#include "columns.h"

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

namespace {

ggml_type column_type(ggml_type type) {
    return ggml_get_type_traits_cpu(type)->vec_dot_type;
}

size_t quantized_bytes(ggml_type type, int64_t n_per_row) {
    return type == GGML_TYPE_F32 ? 0 : (ggml_row_size(type, n_per_row) + kLine - 1) / kLine * kLine;
}

}  // namespace

Columns::Columns(ggml_type type, const MulMat & job, int n_members)
    : Operation(static_cast<size_t>(job.n_columns) *
                    quantized_bytes(column_type(type), job.n_per_row) +
                kLine),
      type_(type), job_(job), column_bytes_(quantized_bytes(column_type(type), job.n_per_row)),
      quantizing_(column_bytes_ == 0 ? 0 : job.n_columns, n_members, 1),
      rows_(job.n_rows, n_members) {}

const void * Columns::column(int64_t c) const {
    const auto i = static_cast<size_t>(c);
    return column_bytes_ == 0 ? static_cast<const void *>(job_.x + i * job_.x_stride)
                              : quantized_ + i * column_bytes_;
}

void Columns::work(const Member & me) {
    const auto * traits = ggml_get_type_traits_cpu(type_);
    quantizing_.run(me, [&](int64_t c) {
        const auto i = static_cast<size_t>(c);
        ggml_get_type_traits_cpu(traits->vec_dot_type)
            ->from_float(job_.x + i * job_.x_stride, quantized_ + i * column_bytes_,
                         job_.n_per_row);
    });
    if (me.team.is_called_off()) {
        return;
    }
    rows_.run(me, [&](int64_t r) {
        // from memory once, then from the first cache for the other columns
        const uint8_t * row = job_.weights + static_cast<size_t>(r) * job_.row_stride;
        for (int64_t c = 0; c < job_.n_columns; c++) {
            traits->vec_dot(static_cast<int>(job_.n_per_row),
                            job_.out + static_cast<size_t>(c) * job_.out_stride + r, 0, row, 0,
                            column(c), 0, 1);
        }
    });
}

}  // namespace inferos::kernels
