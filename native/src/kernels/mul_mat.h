// The product of quantized weights and float columns, shared out over threads.
#pragma once

#include "kernels.h"
#include "team.h"

namespace inferos::kernels {

// out[c * out_stride + r] = sum over k of weights[r][k] * x[c * x_stride + k]; strides in floats.
struct MulMat {
    const uint8_t * weights;  // (n_rows, row_stride bytes)
    size_t          row_stride;
    int64_t         n_rows;     // at least a panel
    int64_t         n_per_row;  // a multiple of the type's unit
    const float *   x;
    size_t          x_stride;
    float *         out;
    size_t          out_stride;
    int64_t         n_columns;
};

// False: no memory.
bool mul_mat(const Variant & variant, const WeightType & type, const MulMat & job, int n_threads,
             Scratch & scratch);

// The same in plain C++, on one thread; what all variants are compared with. Adds in the same
// order: equal to the last bit. False: a type that it does not know, or no memory.
bool mul_mat_portable(int32_t type, const MulMat & job);

}  // namespace inferos::kernels
