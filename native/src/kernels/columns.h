// Products of weights that our kernels have no layout for, with a few columns: each column by ggml's
// own dot product, which is what llama.cpp computes for a single one. So a token's result does not
// depend on the other tokens there either, and a batch that verifies guesses gives the very
// logits of single steps.
#pragma once

#include "ggml.h"
#include "mul_mat.h"

namespace inferos::kernels {

// Columns of such a product at most: with more, llama.cpp's tiles are faster by too much.
constexpr int64_t kMostColumns = 8;

// Whether ggml multiplies rows of this type by itself.
bool has_dot_product(ggml_type type);

// job.weights are of that type; False: no memory.
bool mul_columns(ggml_type type, const MulMat & job, int n_threads, Scratch & scratch);

}  // namespace inferos::kernels
