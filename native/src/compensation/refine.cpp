// With the errors e of a row and moments H, the loss is e H e^T. Let g = e H. If the result grows by d
// in column j, the loss changes by d^2 H[j, j] - 2 d g[j], so that the best value there is the present
// one plus g[j] / H[j, j]; along a block's values it is the same with a block's scale. This is
// coordinate descent, which Nair and Suggala, CDQuant (2024), https://arxiv.org/abs/2406.17542,
// apply to quantization. g is kept for a group of columns at a time; other groups hear of it later.
#include "compensation/refine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compensation/product.h"
#include "compensation/vectors.h"
#include "ggml.h"

namespace inferos {
namespace {

// The upper factor V of a corner H = V V^T of n columns, inverted; false: there is none.
bool invert_corner(const float * moments, int64_t width, int n, float * inverse) {
    double v[kMostColumns][kMostColumns] = {};
    for (int j = n - 1; j >= 0; j--) {
        for (int i = j; i >= 0; i--) {
            double sum = moments[i * width + j];
            for (int k = j + 1; k < n; k++) {
                sum -= v[i][k] * v[j][k];
            }
            if (i == j && !(sum > 0)) {
                return false;
            }
            v[i][j] = i == j ? std::sqrt(sum) : sum / v[j][j];
        }
    }
    std::fill_n(inverse, n * n, 0.0f);
    for (int j = 0; j < n; j++) {
        double column[kMostColumns] = {};
        for (int i = j; i >= 0; i--) {
            double sum = i == j ? 1.0 : 0.0;
            for (int k = i + 1; k <= j; k++) {
                sum -= v[i][k] * column[k];
            }
            column[i]          = sum / v[i][i];
            inverse[i * n + j] = float(column[i]);
        }
    }
    return true;
}

}  // namespace

void Refiner::run(const Refinement & job, int times) {
    if (book_ && !make_corners(job)) {
        return;
    }
    gradient_.assign(job.rows * job.width, 0.0f);
    add_product(Product<float>{job.errors, job.width, 1, job.moments, job.width, 1,
                               gradient_.data(), job.width, job.rows, job.width, job.width, 1.0f});
    parts_.resize(job.rows * type_.block);
    grids_.resize(job.rows);
    for (int time = 0; time < times; time++) {
        for (int64_t at = 0; at < job.width; at += kGroup) {
            refine_group(job, at, std::min(kGroup, job.width - at), time + 1 == times);
        }
    }
}

// V^-1 of the columns of each vector, with H = V V^T there: what choose_vector takes as a corner.
bool Refiner::make_corners(const Refinement & job) {
    const int n = book_->columns;
    corners_.resize(job.width * n);
    for (int64_t at = 0; at < job.width; at += n) {
        const float * corner = job.moments + at * job.width + at;
        if (!invert_corner(corner, job.width, n, corners_.data() + at * n)) {
            return false;
        }
    }
    return true;
}

void Refiner::refine_group(const Refinement & job, int64_t at, int64_t n, bool is_last) {
    at_ = at;
    n_  = n;
    change_.assign(job.rows * kGroup, 0.0f);
    for (int64_t column = at; column < at + n; column += type_.block) {
        for (int64_t r = 0; r < job.rows; r++) {
            type_.read(block_of(job, r, column), grids_[r]);
        }
        fit_scales(job, column, type_.scale_at, false);
        if (type_.minimum_at >= 0) {
            fit_scales(job, column, type_.minimum_at, true);
        }
        for (int64_t r = 0; r < job.rows; r++) {
            book_ ? choose_vectors(job, r, column) : choose_codes(job, r, column);
            type_.write(job.codes + r * job.width + column, block_of(job, r, column));
        }
    }
    for (int64_t r = 0; r < job.rows; r++) {
        for (int64_t i = 0; i < n; i++) {
            job.errors[r * job.width + at + i] -= change_[r * kGroup + i];
        }
    }
    const auto tell = [&](int64_t first, int64_t count) {
        add_product(Product<float>{change_.data(), kGroup, 1, job.moments + at * job.width + first,
                                   job.width, 1, gradient_.data() + first, job.width, job.rows,
                                   count, n, -1.0f});
    };
    if (!is_last) {
        tell(0, at);
    }
    tell(at + n, job.width - at - n);
}

// The result of a row grows in a column of the group.
void Refiner::move(const Refinement & job, int64_t r, int64_t column, float by) {
    float *       gradient = gradient_.data() + r * job.width + at_;
    const float * moments  = job.moments + column * job.width + at_;
    change_[r * kGroup + column - at_] += by;
    for (int64_t i = 0; i < n_; i++) {
        gradient[i] -= by * moments[i];
    }
}

float Refiner::level(int16_t code, int64_t column) const {
    if (book_) {
        const float size = book_->levels[column % book_->columns][code >> 1];
        return code & 1 ? -size : size;
    }
    return float(type_.table ? type_.table[code] : code);
}

// Of the blocks that begin at ``column``, the scale or minimum that lies ``where`` in their bytes.
void Refiner::fit_scales(const Refinement & job, int64_t column, int where, bool is_minimum) {
    const int64_t block = type_.block;
    for (int64_t r = 0; r < job.rows; r++) {
        const int16_t * codes = job.codes + r * job.width + column;
        for (int64_t i = 0; i < block; i++) {
            parts_[r * block + i] =
                is_minimum ? -grids_[r].offset[i] : grids_[r].scale[i] * level(codes[i], i);
        }
    }
    products_.assign(job.rows * kGroup, 0.0f);
    add_product(Product<float>{parts_.data(), block, 1, job.moments + column * job.width + at_,
                               job.width, 1, products_.data(), kGroup, job.rows, n_, block, 1.0f});
    for (int64_t r = 0; r < job.rows; r++) {
        fit_scale(job, r, column, where);
    }
}

void Refiner::fit_scale(const Refinement & job, int64_t r, int64_t column, int where) {
    const float * parts    = parts_.data() + r * type_.block;
    const float * products = products_.data() + r * kGroup;
    float *       gradient = gradient_.data() + r * job.width + at_;
    uint8_t *     bytes    = block_of(job, r, column);
    double        along = 0, across = 0;
    for (int i = 0; i < type_.block; i++) {
        along += double(parts[i]) * gradient[column - at_ + i];
        across += double(parts[i]) * products[column - at_ + i];
    }
    ggml_fp16_t half;
    memcpy(&half, bytes + where, sizeof half);
    const float was = ggml_fp16_to_fp32(half);
    if (!(across > 0) || was == 0) {
        return;
    }
    const ggml_fp16_t fitted = ggml_fp32_to_fp16(float(was * (1 + along / across)));
    const float       factor = ggml_fp16_to_fp32(fitted) / was - 1;
    // the half next to the best may be no better than the present one; signs belong to the codes
    if (!(factor * factor * across < 2 * factor * along) || !(factor > -1)) {
        return;
    }
    memcpy(bytes + where, &fitted, sizeof fitted);
    type_.read(bytes, grids_[r]);
    for (int i = 0; i < type_.block; i++) {
        change_[r * kGroup + column - at_ + i] += factor * parts[i];
    }
    for (int64_t i = 0; i < n_; i++) {
        gradient[i] -= factor * products[i];
    }
}

void Refiner::choose_codes(const Refinement & job, int64_t r, int64_t column) {
    int16_t *     codes    = job.codes + r * job.width + column;
    const float * gradient = gradient_.data() + r * job.width + column;
    for (int i = 0; i < type_.block; i++) {
        const float scale = grids_[r].scale[i];
        if (scale == 0) {
            continue;
        }
        const float weight = job.moments[(column + i) * job.width + column + i];
        const float was    = level(codes[i], i);
        const int   code   = nearest_code(type_, was + gradient[i] / (weight * scale));
        if (code != codes[i]) {
            codes[i] = int16_t(code);
            move(job, r, column + i, scale * (level(codes[i], i) - was));
        }
    }
}

void Refiner::choose_vectors(const Refinement & job, int64_t r, int64_t column) {
    const int     n     = book_->columns;
    int16_t *     codes = job.codes + r * job.width + column;
    const float * scale = grids_[r].scale;
    for (int i = 0; i < type_.block; i += n) {
        const float * gradient = gradient_.data() + r * job.width + column + i;
        const float * corner   = corners_.data() + (column + i) * n;
        int16_t       was[kMostColumns];
        float         wanted[kMostColumns], half[kMostColumns] = {}, change[kMostColumns];
        std::copy_n(codes + i, n, was);
        // g H^-1 with H^-1 = V^-T V^-1
        for (int k = 0; k < n; k++) {
            for (int j = k; j < n; j++) {
                half[k] += corner[k * n + j] * gradient[j];
            }
        }
        for (int k = 0; k < n; k++) {
            wanted[k] = scale[i + k] * level(was[k], k);
            for (int j = 0; j <= k; j++) {
                wanted[k] += corner[j * n + k] * half[j];
            }
        }
        int others = -1;
        if (book_->even_signs) {
            others = count_negative(codes + i / 8 * 8, 8) - count_negative(codes + i, n);
        }
        choose_vector(*book_, wanted, scale + i, corner, n, others, codes + i);
        double gain = 0;
        for (int k = 0; k < n; k++) {
            change[k] = scale[i + k] * (level(codes[i + k], k) - level(was[k], k));
            gain += 2.0 * change[k] * gradient[k];
        }
        for (int k = 0; k < n; k++) {
            for (int j = 0; j < n; j++) {
                const float weight = job.moments[(column + i + k) * job.width + column + i + j];
                gain -= double(change[k]) * change[j] * weight;
            }
        }
        // not every vector with its signs was tried
        if (!(gain > 0)) {
            std::copy_n(was, n, codes + i);
            continue;
        }
        for (int k = 0; k < n; k++) {
            if (change[k] != 0) {
                move(job, r, column + i + k, change[k]);
            }
        }
    }
}

}  // namespace inferos
