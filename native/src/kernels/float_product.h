// The product of float weights and float columns, shared out over threads.
#pragma once

#include "mul_mat.h"

namespace inferos::kernels {

// Values of a row come in multiples of this.
constexpr int64_t kFloatUnit = 16;

class FloatProduct final : public Operation {
  public:
    FloatProduct(const FloatType & type, const MulMat & job, int n_members);
    void work(const Member & me) override;
    void place(uint8_t *) override {}

  private:
    void multiply(int64_t first, int64_t end) const;

    const FloatType & type_;
    MulMat            job_;
    Pieces            groups_;  // of neighbouring rows
};

}  // namespace inferos::kernels
