// A run of rows stays in the second cache while all columns pass over it, a tile at a time. Nothing is
// converted or copied before: activations stay float32.
#include "float_product.h"

#include <algorithm>

namespace inferos::kernels {
namespace {

constexpr int64_t kRunBytes = 256 * 1024;  // of weights, with many columns

int64_t longest_run(const FloatType & type, const MulMat & job) {
    if (job.n_columns <= type.tile) {
        return INT64_MAX;  // every row is read once
    }
    const auto group_bytes = static_cast<int64_t>(job.row_stride) * type.tile;
    return std::max<int64_t>(1, kRunBytes / group_bytes);
}

}  // namespace

FloatProduct::FloatProduct(const FloatType & type, const MulMat & job, int n_members)
    : Operation(0), type_(type), job_(job),
      groups_((job.n_rows + type.tile - 1) / type.tile, n_members, longest_run(type, job)) {}

void FloatProduct::work(const Member & me) {
    int64_t first = 0, end = 0;
    while (groups_.claim(first, end)) {
        multiply(first * type_.tile, std::min(end * type_.tile, job_.n_rows));
        groups_.finish(me, end - first);
    }
    groups_.wait(me);
}

// Rows from first to end - 1 with all columns.
void FloatProduct::multiply(int64_t first, int64_t end) const {
    for (int64_t c = 0; c < job_.n_columns; c += type_.tile) {
        const auto    width  = std::min<int64_t>(type_.tile, job_.n_columns - c);
        const float * x      = job_.x + static_cast<size_t>(c) * job_.x_stride;
        float *       out    = job_.out + static_cast<size_t>(c) * job_.out_stride;
        const auto    row_at = [this](int64_t row) {
            return job_.weights + static_cast<size_t>(row) * job_.row_stride;
        };
        int64_t row = first;
        for (; row + type_.tile <= end; row += type_.tile) {
            type_.product[width - 1](row_at(row), job_.row_stride, job_.n_per_row, x, job_.x_stride,
                                     out + row, job_.out_stride, c == 0);
        }
        for (; row < end; row++) {
            type_.of_a_row[width - 1](row_at(row), job_.row_stride, job_.n_per_row, x,
                                      job_.x_stride, out + row, job_.out_stride, false);
        }
    }
}

}  // namespace inferos::kernels
