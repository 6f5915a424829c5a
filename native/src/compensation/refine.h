// The scales and codes that a sweep chose, chosen again now that all errors of a row are known.
#pragma once

#include <stdint.h>

#include <vector>

#include "compensation/grid.h"
#include "compensation/sweep.h"

namespace inferos {

// A diagonal block of columns of a few rows; errors and codes are (rows, width).
struct Refinement {
    const float * moments;  // (width, width), damped
    int64_t       rows, width;
    float *       errors;  // the source less the result
    int16_t *     codes;
    uint8_t *     bytes;  // of the first row's first block
    int64_t       row_bytes, block_bytes;
};

// Makes the errors of every row less, in the metric of the moments, or leaves them as they are.
class Refiner {
  public:
    explicit Refiner(const GridType & type)
        : type_(type), book_(type.codebook ? type.codebook() : nullptr) {}

    // Each block's scales become those of least squares for its codes, then each code the best one
    // for all others; all of it so many times.
    void run(const Refinement & job, int times);

  private:
    bool make_corners(const Refinement & job);
    void refine_group(const Refinement & job, int64_t at, int64_t n, bool is_last);
    void fit_scales(const Refinement & job, int64_t column, int where, bool is_minimum);
    void fit_scale(const Refinement & job, int64_t r, int64_t column, int where);
    void choose_codes(const Refinement & job, int64_t r, int64_t column);
    void choose_vectors(const Refinement & job, int64_t r, int64_t column);
    void move(const Refinement & job, int64_t r, int64_t column, float by);
    float level(int16_t code, int64_t column) const;

    uint8_t * block_of(const Refinement & job, int64_t r, int64_t column) const {
        return job.bytes + r * job.row_bytes + column / type_.block * job.block_bytes;
    }

    const GridType &   type_;
    const Codebook *   book_;            // null: every column has a code of its own
    int64_t            at_ = 0, n_ = 0;  // the group of columns that is refined
    std::vector<float> gradient_;        // (rows, width) errors times moments
    std::vector<float> change_;          // (rows, kGroup) of the results of the group
    std::vector<float> parts_;           // (rows, block) of the values, in proportion to a scale
    std::vector<float> products_;        // (rows, block) of these with the moments
    std::vector<float> corners_;         // (width, columns of a vector), see make_corners
    std::vector<Grid>  grids_;           // (rows,)
};

}  // namespace inferos
