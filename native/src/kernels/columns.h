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

class Columns final : public Operation {
  public:
    // job.weights are of that type, see has_dot_product.
    Columns(ggml_type type, const MulMat & job, int n_members);
    void work(const Member & me) override;
    void place(uint8_t * scratch) override { quantized_ = scratch; }

  private:
    const void * column(int64_t c) const;

    ggml_type type_;
    MulMat    job_;
    size_t    column_bytes_;  // quantized; 0: they stay floats
    uint8_t * quantized_ = nullptr;
    Pieces    quantizing_;
    Pieces    rows_;
};

}  // namespace inferos::kernels
