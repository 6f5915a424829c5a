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
#include <numeric>
#include <vector>

#include "compensation/grid.h"
#include "compensation/product.h"
#include "cpu_features.h"
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
using inferos::Product;

constexpr int64_t kRows = 64;
// columns after which the rest of a group hears of their errors
constexpr int64_t kStep = 32;

// Columns that may take the other sign where an even number is to be negative.
constexpr int kFlips = 3;

// A sum with it and its difference again is rounded to a whole number, halves to even.
constexpr float kRounding = 12582912.0f;

int nearest_code(const GridType & type, float x) {
    if (type.table) {
        int code = 0;
        for (int i = 0; i < 15; i++) {
            code += x > 0.5f * float(type.table[i] + type.table[i + 1]);
        }
        return code;
    }
    const float within = std::min(std::max(x, float(type.low)), float(type.high));
    return int(within + kRounding - kRounding);
}

// What a few neighbouring columns should be, and the corner of the feedback that is theirs.
struct Vector {
    float wanted[inferos::kMostColumns];
    float scale[inferos::kMostColumns];
    float unit[inferos::kMostColumns];  // one by the diagonal
    float onto[inferos::kMostColumns][inferos::kMostColumns];
    // the sign bit where a column is to have the other sign than it would take
    int32_t flip[inferos::kMostColumns];
    // the sign bit if an odd number is to be negative, and if it matters
    int32_t odd, odd_matters;
};

// The squared errors of every vector of a codebook, in units of the feedback: what is lost after the
// columns behind have made up for it; infinity where the number of negatives is wrong. A column takes
// the sign of what it should be by then, or the other if it is flipped.
template <int Bytes, int Columns>
[[gnu::always_inline]] inline void fill_losses(const Codebook & book, const Vector & vector,
                                               float * losses) {
    typedef float   Floats __attribute__((vector_size(Bytes)));
    typedef int32_t Bits __attribute__((vector_size(Bytes)));
    constexpr int   kLanes = Bytes / int(sizeof(float));
    for (int e = 0; e < book.n; e += kLanes) {
        Floats left[Columns], loss = {};
        Bits   odd = {};
        for (int i = 0; i < Columns; i++) {
            left[i] = Floats{} + vector.wanted[i];
        }
        for (int i = 0; i < Columns; i++) {
            Floats level;
            memcpy(&level, book.levels[i] + e, sizeof level);
            const Bits sign = (Bits(left[i]) & INT32_MIN) ^ vector.flip[i];
            odd ^= sign;
            const Floats value = Floats(Bits(level * vector.scale[i]) | sign);
            const Floats move  = (left[i] - value) * vector.unit[i];
            loss += move * move;
            for (int j = i + 1; j < Columns; j++) {
                left[j] -= move * vector.onto[i][j];
            }
        }
        const Bits wrong = ((odd ^ vector.odd) & vector.odd_matters) >> 31;
        loss             = Floats((Bits(loss) & ~wrong) | (Bits(Floats{} + INFINITY) & wrong));
        memcpy(losses + e, &loss, sizeof loss);
    }
}

template <int Bytes>
[[gnu::always_inline]] inline void vector_losses_in(const Codebook & book, const Vector & vector,
                                                    float * losses) {
    book.columns == 4 ? fill_losses<Bytes, 4>(book, vector, losses)
                      : fill_losses<Bytes, 8>(book, vector, losses);
}

void vector_losses_baseline(const Codebook & book, const Vector & vector, float * losses) {
    vector_losses_in<16>(book, vector, losses);
}

#if defined(__x86_64__) || defined(__i386__)
[[gnu::target("avx2,fma")]] void vector_losses_avx2(const Codebook & book, const Vector & vector,
                                                    float * losses) {
    vector_losses_in<32>(book, vector, losses);
}

[[gnu::target("avx512f,avx512vl,avx512dq,avx512bw,fma")]] void
vector_losses_avx512(const Codebook & book, const Vector & vector, float * losses) {
    vector_losses_in<64>(book, vector, losses);
}
#endif

void vector_losses(const Codebook & book, const Vector & vector, float * losses) {
#if defined(__x86_64__) || defined(__i386__)
    const inferos::CpuFeatures & cpu = inferos::cpu_features();
    if (cpu.avx512f && cpu.avx512vl && cpu.avx512dq && cpu.avx512bw && cpu.fma) {
        return vector_losses_avx512(book, vector, losses);
    }
    if (cpu.avx2 && cpu.fma) {
        return vector_losses_avx2(book, vector, losses);
    }
#endif
    vector_losses_baseline(book, vector, losses);
}

class Chunk {
  public:
    Chunk(const inferos_compensate_job & job, const GridType & type, KquantFunction kquant)
        : job_(job), type_(type), kquant_(kquant),
          block_bytes_(int64_t(ggml_row_size(ggml_type(type.type), type.block))),
          wanted_(kRows * kGroup), moved_(kRows * kStep), gathered_(kRows * type.block),
          packed_(kRows * block_bytes_), codes_(kRows * kGroup), grids_(kRows),
          codebook_(type.codebook ? type.codebook() : nullptr) {
        int64_t widest = 0;
        for (int64_t i = 0; i < job.n_blocks; i++) {
            widest = std::max(widest, job.widths[i]);
        }
        errors_.resize(kRows * widest);
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
                sweep_row(r, s, step, from + at, corner, width, errors_.data() + r * width + at);
            }
            add_product(Product<float>{moved_.data(), kStep, 1, corner + s * width + s + step,
                                       width, 1, wanted_.data() + s + step, kGroup, n_,
                                       n - s - step, step, -1.0f});
            if ((s + step) % type_.block == 0) {
                write_blocks(from + at + s + step - type_.block, s + step - type_.block);
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

    void sweep_row(int64_t r, int64_t s, int64_t n, int64_t column, const float * corner,
                   int64_t width, float * errors) {
        float *       wanted = wanted_.data() + r * kGroup;
        float *       moved  = moved_.data() + r * kStep;
        const float * was    = row(r) + column;
        const Grid &  grid   = grids_[r];
        for (int64_t k = s; k < s + n; k++) {
            const int   in_block = int(k % type_.block);
            const float scale = grid.scale[in_block], offset = grid.offset[in_block];
            if (codebook_ && k % codebook_->columns == 0) {
                choose_vector(wanted + k, grid, in_block, corner + k * width + k, width,
                              codes_.data() + r * kGroup + k);
            }
            int   code;
            float level;
            if (codebook_) {
                code                = codes_[r * kGroup + k] & ~1;
                level               = codebook_->levels[k % codebook_->columns][code >> 1];
                const bool negative = codebook_->even_signs
                                          ? codes_[r * kGroup + k] & 1
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
            moved[k - s]           = move;
            codes_[r * kGroup + k] = int16_t(code);
            errors[k]              = was[k] - value;
            error.sum_squared_error += double(errors[k]) * errors[k];
            error.sum_squared_value += double(was[k]) * was[k];
            error.max_abs_error = std::max(error.max_abs_error, std::fabs(double(errors[k])));
        }
    }

    // Sets the codes of the columns that one vector of the codebook stands for; their signs only if
    // these depend on each other.
    void choose_vector(const float * wanted, const Grid & grid, int in_block, const float * corner,
                       int64_t width, int16_t * codes) const {
        const int n      = codebook_->columns;
        Vector    vector = {};
        for (int i = 0; i < n; i++) {
            vector.wanted[i] = wanted[i];
            vector.scale[i]  = std::fabs(grid.scale[in_block + i]);
            vector.unit[i]   = 1.0f / corner[i * width + i];
            for (int j = i + 1; j < n; j++) {
                vector.onto[i][j] = corner[i * width + j];
            }
        }
        int64_t best;
        if (codebook_->even_signs && (in_block + n) % 8 == 0) {
            best = choose_even(vector, count_negative(codes - (8 - n), 8 - n) % 2 != 0);
        } else {
            float losses[inferos::kMostVectors];
            best = best_vector(vector, losses) - losses;
        }
        std::fill_n(codes, n, int16_t(best << 1));
        if (codebook_->even_signs) {
            set_signs(vector, best, codes);
        }
    }

    const float * best_vector(const Vector & vector, float * losses) const {
        vector_losses(*codebook_, vector, losses);
        return std::min_element(losses, losses + codebook_->n);
    }

    // The best vector of those with an odd or even number of negatives; sets which column to flip:
    // none, or one of those to which the other sign matters least.
    int64_t choose_even(Vector & vector, bool odd) const {
        const int n = codebook_->columns;
        int       order[inferos::kMostColumns];
        std::iota(order, order + n, 0);
        std::stable_sort(order, order + n, [&](int a, int b) {
            return std::fabs(vector.wanted[a]) * vector.unit[a] <
                   std::fabs(vector.wanted[b]) * vector.unit[b];
        });
        vector.odd         = odd ? INT32_MIN : 0;
        vector.odd_matters = INT32_MIN;
        float   losses[inferos::kMostVectors];
        float   least   = INFINITY;
        int64_t best    = 0;
        int     flipped = -1;
        for (int i = -1; i < kFlips; i++) {
            const int column = i < 0 ? -1 : order[i];
            set_flip(vector, column);
            if (const float * found = best_vector(vector, losses); *found < least) {
                least   = *found;
                best    = found - losses;
                flipped = column;
            }
        }
        set_flip(vector, flipped);
        return best;
    }

    static void set_flip(Vector & vector, int column) {
        for (int i = 0; i < inferos::kMostColumns; i++) {
            vector.flip[i] = i == column ? INT32_MIN : 0;
        }
    }

    // Sets the low bits of the codes to the signs that the columns take with this vector. What lies
    // between two signs may have been rounded otherwise when the losses were compared: the last
    // column then makes their number right.
    void set_signs(const Vector & vector, int64_t entry, int16_t * codes) const {
        const int n = codebook_->columns;
        float     left[inferos::kMostColumns];
        std::copy_n(vector.wanted, n, left);
        for (int i = 0; i < n; i++) {
            const bool  negative = std::signbit(left[i]) != (vector.flip[i] != 0);
            const float size     = codebook_->levels[i][entry] * vector.scale[i];
            const float move     = (left[i] - (negative ? -size : size)) * vector.unit[i];
            for (int j = i + 1; j < n; j++) {
                left[j] -= move * vector.onto[i][j];
            }
            codes[i] |= negative;
        }
        if (vector.odd_matters && (count_negative(codes, n) % 2 != 0) != (vector.odd != 0)) {
            codes[n - 1] ^= 1;
        }
    }

    static int count_negative(const int16_t * codes, int n) {
        return int(std::count_if(codes, codes + n, [](int16_t code) { return code & 1; }));
    }

    void write_blocks(int64_t column, int64_t s) {
        for (int64_t r = 0; r < n_; r++) {
            uint8_t * bytes = packed_.data() + r * block_bytes_;
            type_.write(codes_.data() + r * kGroup + s, bytes);
            memcpy(row_out(r) + column / type_.block * block_bytes_, bytes, block_bytes_);
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
    std::vector<int16_t>           codes_;     // (kRows, kGroup)
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
