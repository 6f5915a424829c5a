// Rows of floats in, rows of blocks out, where the rounding of each column makes up for the errors of
// those before it. A thread takes a chunk of rows at a time; a row's bytes depend on no other row.
// The scales of a block are those that ggml's own search finds for the values that the block has when
// the sweep reaches it.
#include "compensation/sweep.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <vector>

#include "compensation/grid.h"
#include "compensation/product.h"
#include "compensation/refine.h"
#include "compensation/vectors.h"
#include "ggml.h"
#include "inferos.h"
#include "kquants.h"
#include "parallel.h"

namespace {

using inferos::add_product;
using inferos::Codebook;
using inferos::Grid;
using inferos::GridType;
using inferos::kGroup;
using inferos::nearest_code;
using inferos::Product;

constexpr int64_t kRows = 64;
// columns after which the rest of a group hears of their errors
constexpr int64_t kStep = 32;

class Chunk {
  public:
    Chunk(const inferos_compensate_job & job, const GridType & type, KquantFunction kquant)
        : job_(job), type_(type), kquant_(kquant),
          block_bytes_(int64_t(ggml_row_size(ggml_type(type.type), type.block))),
          wanted_(kRows * kGroup), moved_(kRows * kStep), gathered_(kRows * type.block),
          packed_(kRows * block_bytes_), refiner_(type), grids_(kRows),
          codebook_(type.codebook ? type.codebook() : nullptr) {
        int64_t widest = 0;
        for (int64_t i = 0; i < job.n_blocks; i++) {
            widest = std::max(widest, job.widths[i]);
        }
        errors_.resize(kRows * widest);
        codes_.resize(kRows * widest);
    }

    inferos_quantize_error error = {};

    void run(int64_t first, int64_t n) {
        first_ = first;
        n_     = n;
        if (const int64_t bad = count_not_finite(); bad > 0) {
            error.n_not_finite += bad;
            memset(row_out(0), 0, n * row_bytes());
            return;
        }
        const float * feedback = job_.feedback;
        int64_t       from     = 0;
        for (int64_t i = 0; i < job_.n_blocks; i++) {
            const int64_t width = job_.widths[i];
            for (int64_t at = 0; at < width; at += kGroup) {
                sweep_group(from, at, std::min(kGroup, width - at), feedback, width);
            }
            if (job_.moments) {
                refiner_.run({job_.moments + (feedback - job_.feedback), n_, width, errors_.data(),
                              codes_.data(), row_out(0) + from / type_.block * block_bytes_,
                              row_bytes(), block_bytes_},
                             job_.refinements);
            }
            add_errors(from, width);
            feedback += width * width;
            from += width;
        }
    }

  private:
    const float * row(int64_t r) const { return job_.rows + (first_ + r) * job_.n_per_row; }
    int64_t row_bytes() const { return job_.n_per_row / type_.block * block_bytes_; }
    uint8_t * row_out(int64_t r) const {
        return static_cast<uint8_t *>(job_.dst) + (first_ + r) * row_bytes();
    }

    int64_t count_not_finite() const {
        int64_t bad = 0;
        for (int64_t i = 0; i < n_ * job_.n_per_row; i++) {
            bad += !std::isfinite(row(0)[i]);
        }
        return bad;
    }

    // Of the diagonal block of ``width`` columns that begins at ``from``.
    void add_errors(int64_t from, int64_t width) {
        for (int64_t r = 0; r < n_; r++) {
            const float * errors = errors_.data() + r * width;
            const float * was    = row(r) + from;
            for (int64_t k = 0; k < width; k++) {
                error.sum_squared_error += double(errors[k]) * errors[k];
                error.sum_squared_value += double(was[k]) * was[k];
                error.max_abs_error = std::max(error.max_abs_error, std::fabs(double(errors[k])));
            }
        }
    }

    // The columns at..at + n of the diagonal block of ``width`` columns that begins at ``from``.
    void sweep_group(int64_t from, int64_t at, int64_t n, const float * feedback, int64_t width) {
        for (int64_t r = 0; r < n_; r++) {
            std::copy_n(row(r) + from + at, n, wanted_.data() + r * kGroup);
        }
        add_product(Product<float>{errors_.data(), width, 1, feedback + at, width, 1,
                                   wanted_.data(), kGroup, n_, n, at, 1.0f});
        const float * corner = feedback + at * width + at;  // (n, n), upper triangular
        for (int64_t s = 0; s < n; s += kStep) {
            if (s % type_.block == 0) {
                choose_scales(from + at + s, s);
            }
            const int64_t step = std::min(kStep, n - s);
            for (int64_t r = 0; r < n_; r++) {
                sweep_row(r, s, step, from, at, corner, width);
            }
            add_product(Product<float>{moved_.data(), kStep, 1, corner + s * width + s + step,
                                       width, 1, wanted_.data() + s + step, kGroup, n_,
                                       n - s - step, step, -1.0f});
            if ((s + step) % type_.block == 0) {
                write_blocks(from, at + s + step - type_.block, width);
            }
        }
    }

    // ``column`` counts in the row, ``s`` in the group.
    void choose_scales(int64_t column, int64_t s) {
        const int64_t block = type_.block;
        for (int64_t r = 0; r < n_; r++) {
            for (int64_t i = 0; i < block; i++) {
                const float value           = wanted_[r * kGroup + s + i];
                const bool  usable          = std::isfinite(value);
                gathered_[r * block + i]    = usable ? value : 0.0f;
                wanted_[r * kGroup + s + i] = gathered_[r * block + i];
                error.n_not_finite += !usable;
            }
        }
        const float * importance = job_.importance + column;
        if (kquant_) {
            kquant_({gathered_.data(), packed_.data(), importance, n_, 1, kquant_bits(type_.type)});
        } else {
            ggml_quantize_chunk(ggml_type(type_.type), gathered_.data(), packed_.data(), 0, n_,
                                block, importance);
        }
        for (int64_t r = 0; r < n_; r++) {
            type_.read(packed_.data() + r * block_bytes_, grids_[r]);
        }
    }

    void sweep_row(int64_t r, int64_t s, int64_t n, int64_t from, int64_t at, const float * corner,
                   int64_t width) {
        float *       wanted = wanted_.data() + r * kGroup;
        float *       moved  = moved_.data() + r * kStep;
        float *       errors = errors_.data() + r * width + at;
        const float * was    = row(r) + from + at;
        const Grid &  grid   = grids_[r];
        for (int64_t k = s; k < s + n; k++) {
            const int   in_block = int(k % type_.block);
            const float scale = grid.scale[in_block], offset = grid.offset[in_block];
            if (codebook_ && k % codebook_->columns == 0) {
                int16_t * codes = codes_.data() + r * width + at + k;
                const int n     = codebook_->columns;
                const int seen  = codebook_->even_signs && (in_block + n) % 8 == 0
                                      ? inferos::count_negative(codes - (8 - n), 8 - n)
                                      : -1;
                inferos::choose_vector(*codebook_, wanted + k, grid.scale + in_block,
                                       corner + k * width + k, width, seen, codes);
            }
            int   code;
            float level;
            if (codebook_) {
                code                = codes_[r * width + at + k] & ~1;
                level               = codebook_->levels[k % codebook_->columns][code >> 1];
                const bool negative = codebook_->even_signs
                                          ? codes_[r * width + at + k] & 1
                                          : std::signbit(wanted[k]) != std::signbit(scale);
                if (negative) {
                    code |= 1;
                    level = -level;
                }
            } else {
                code  = nearest_code(type_, scale != 0 ? (wanted[k] + offset) / scale : 0.0f);
                level = float(type_.table ? type_.table[code] : code);
            }
            const float   value = scale * level - offset;
            const float * onto  = corner + k * width;
            const float   move  = (wanted[k] - value) / onto[k];
            for (int64_t j = k + 1; j < s + n; j++) {
                wanted[j] -= move * onto[j];
            }
            moved[k - s]               = move;
            codes_[r * width + at + k] = int16_t(code);
            errors[k]                  = was[k] - value;
        }
    }

    void write_blocks(int64_t from, int64_t at, int64_t width) {
        for (int64_t r = 0; r < n_; r++) {
            uint8_t * bytes = packed_.data() + r * block_bytes_;
            type_.write(codes_.data() + r * width + at, bytes);
            memcpy(row_out(r) + (from + at) / type_.block * block_bytes_, bytes, block_bytes_);
        }
    }

    const inferos_compensate_job & job_;
    const GridType &               type_;
    KquantFunction                 kquant_;  // null: ggml_quantize_chunk
    int64_t                        block_bytes_;
    int64_t                        first_ = 0, n_ = 0;
    std::vector<float>             wanted_;    // (kRows, kGroup) what the columns should be
    std::vector<float>             errors_;    // (kRows, widest block) source less result
    std::vector<float>             moved_;     // (kRows, kStep) errors in units of the feedback
    std::vector<float>             gathered_;  // (kRows, block)
    std::vector<uint8_t>           packed_;    // (kRows, block_bytes_)
    std::vector<int16_t>           codes_;     // (kRows, widest block)
    inferos::Refiner               refiner_;
    std::vector<Grid>              grids_;     // (kRows,)
    const Codebook *               codebook_;  // null: every column has a code of its own
};

bool has_shape(const inferos_compensate_job & job, const GridType & type) {
    int64_t columns = 0;
    for (int64_t i = 0; i < job.n_blocks; i++) {
        if (job.widths[i] < 1 || job.widths[i] % type.block != 0) {
            return false;
        }
        columns += job.widths[i];
    }
    return job.n_rows >= 0 && columns == job.n_per_row && columns > 0;
}

}  // namespace

INFEROS_API int32_t inferos_compensates(int32_t type) {
    return inferos::grid_type(type) != nullptr;
}

INFEROS_API int32_t inferos_compensate_rows(const inferos_compensate_job * job,
                                            inferos_quantize_error *       error) {
    const GridType * type = inferos::grid_type(job->dst_type);
    if (!type) {
        return INFEROS_BAD_TYPE;
    }
    if (!has_shape(*job, *type)) {
        return INFEROS_BAD_SHAPE;
    }
    // builds the lookup tables once, before the threads need them
    ggml_quantize_init(ggml_type(type->type));
    const int64_t n_chunks  = (job->n_rows + kRows - 1) / kRows;
    const int64_t n_workers = std::max<int64_t>(1, std::min<int64_t>(job->n_threads, n_chunks));
    std::atomic<int64_t> next{0};
    try {
        const KquantFunction kquant = kquant_function(INFEROS_KERNEL_BEST, type->type);
        std::vector<Chunk>   workers;
        workers.reserve(n_workers);
        for (int64_t i = 0; i < n_workers; i++) {
            workers.emplace_back(*job, *type, kquant);
        }
        inferos::in_parallel(n_workers, [&](int64_t i) {
            for (int64_t chunk = next++; chunk < n_chunks; chunk = next++) {
                const int64_t first = chunk * kRows;
                workers[i].run(first, std::min(kRows, job->n_rows - first));
            }
        });
        for (const Chunk & worker : workers) {
            error->sum_squared_error += worker.error.sum_squared_error;
            error->sum_squared_value += worker.error.sum_squared_value;
            error->max_abs_error = std::max(error->max_abs_error, worker.error.max_abs_error);
            error->n_not_finite += worker.error.n_not_finite;
        }
    } catch (const std::exception &) {
        return INFEROS_NO_MEMORY;
    }
    return INFEROS_OK;
}
