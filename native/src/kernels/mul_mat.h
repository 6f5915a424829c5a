// The product of quantized weights and float columns, shared out over threads.
#pragma once

#include "kernels.h"
#include "operation.h"

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

// The columns of tile i when n columns are split evenly into tiles of at most `widest`, the wider
// ones first.
struct Tiles {
    int64_t n_columns;
    int64_t count;

    Tiles(int64_t n, int64_t widest) : n_columns(n), count((n + widest - 1) / widest) {}

    int64_t first(int64_t i) const {
        const int64_t wider = n_columns % count;
        return i * (n_columns / count) + (i < wider ? i : wider);
    }
    int32_t width(int64_t i) const { return static_cast<int32_t>(first(i + 1) - first(i)); }
};

// How a product is shared out, and where its parts lie.
struct ProductPlan {
    const Variant &    variant;
    const WeightType & type;
    MulMat             job;
    bool               is_wide;  // by instructions for matrices
    bool               by_rows;  // a few rows at a time
    int64_t            n_panels;
    int64_t            group;    // panels that are unpacked together
    bool               by_twos;  // panels of a group
    Tiles              tiles;
    int64_t            n_blocks;
    int64_t            n_units;
    int64_t            part_units;  // that are unpacked at once
    // Columns are quantized by tiles, since neighbouring ones of a tile lie in the same lines of the
    // cache, and in parts of their rows if tiles are few.
    int64_t   parts_of_tile;
    size_t    column_bytes;
    size_t    tail_bytes;
    size_t    private_bytes;
    uint8_t * columns      = nullptr;  // all tiles, one after another
    uint8_t * private_part = nullptr;  // of each member

    ProductPlan(const Variant & variant, const WeightType & type, const MulMat & job,
                int n_members);

    bool is_few() const { return job.n_columns <= kTile; }
    const uint8_t * panel(int64_t i) const {
        return job.weights + static_cast<size_t>(first_row(i)) * job.row_stride;
    }
    // the last panel reaches back over rows of the one before, if the rows do not fill it
    int64_t first_row(int64_t i) const {
        const int64_t row = i * variant.rows, last = job.n_rows - variant.rows;
        return row < last ? row : last;
    }
    uint8_t * tile(int64_t i) const {
        return columns + static_cast<size_t>(tiles.first(i) * n_blocks) * kColumnBytes;
    }
    bool overlaps(int64_t i) const { return i * variant.rows != first_row(i); }
    // rows follow each other without gaps, so that a panel is one run of bytes
    bool is_dense() const {
        return job.row_stride == static_cast<size_t>(n_units * type.unit_bytes);
    }
};

class Product final : public Operation {
  public:
    Product(const Variant & variant, const WeightType & type, const MulMat & job, int n_members);
    void work(const Member & me) override;
    void place(uint8_t * scratch) override;

  private:
    Product(const ProductPlan & plan, int n_members);

    ProductPlan plan_;
    Pieces      quantizing_;
    Pieces      computing_;  // panels, or groups of them
};

// One product alone. False: no memory.
bool mul_mat(const Variant & variant, const WeightType & type, const MulMat & job, int n_members,
             Scratch & scratch);

// The same in plain C++, on one thread; what all variants are compared with. Adds in the same
// order: equal to the last bit. False: a type that it does not know, or no memory.
bool mul_mat_portable(int32_t type, const MulMat & job);

}  // namespace inferos::kernels
