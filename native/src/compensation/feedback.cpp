// From the second moments H of a layer's inputs to what a sweep over its columns needs. With
// H = V V^T, V upper triangular, and e the errors of the columns before a group B, the values of B
// that make the layer's squared error least are w_B + (e V[:, B]) V[B, B]^-1; inside the group, an
// error of column k moves the columns behind it by row k of V[B, B]^-1, divided by its diagonal.
// That is GPTQ (Frantar et al., 2022, https://arxiv.org/abs/2210.17323), whose upper factor of H^-1
// is V^-1, without inverting more than a group at a time.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "compensation/product.h"
#include "compensation/sweep.h"
#include "inferos.h"
#include "parallel.h"

namespace {

using inferos::add_product;
using inferos::kGroup;
using inferos::Product;

// columns that are factored at a time, and rows of a piece of work
constexpr int64_t kStep = 64;
// damping is multiplied by ten until the factor exists, up to the mean of the diagonal itself
constexpr double kMostDamping = 1.0;

// Calls work(first, end) for pieces of rows first..end of n, on up to n_threads threads.
template <typename Work>
void by_rows(int64_t from, int64_t n, int32_t n_threads, const Work & work) {
    if (from >= n) {
        return;
    }
    std::atomic<int64_t> next{from};
    const int64_t        pieces = (n - from + kStep - 1) / kStep;
    inferos::in_parallel(std::max<int64_t>(1, std::min<int64_t>(n_threads, pieces)), [&](int64_t) {
        for (;;) {
            const int64_t first = next.fetch_add(kStep, std::memory_order_relaxed);
            if (first >= n) {
                return;
            }
            work(first, std::min(first + kStep, n));
        }
    });
}

// The lower factor of the rows and columns [first, end) of a, in its place; false: none exists.
bool factor_corner(double * a, int64_t n, int64_t first, int64_t end) {
    for (int64_t j = first; j < end; j++) {
        double * row = a + j * n;
        for (int64_t i = first; i < j; i++) {
            const double * other = a + i * n;
            double         sum   = row[i];
            for (int64_t k = first; k < i; k++) {
                sum -= row[k] * other[k];
            }
            row[i] = sum / other[i];
        }
        double pivot = row[j];
        for (int64_t k = first; k < j; k++) {
            pivot -= row[k] * row[k];
        }
        // written so that NaN fails too
        if (!(pivot > 0) || !std::isfinite(pivot)) {
            return false;
        }
        row[j] = std::sqrt(pivot);
    }
    return true;
}

// Cholesky: a (n, n), of which the lower half is read, becomes L with L L^T = a.
bool factor(double * a, int64_t n, int32_t n_threads) {
    for (int64_t first = 0; first < n; first += kStep) {
        const int64_t end = std::min(first + kStep, n);
        if (!factor_corner(a, n, first, end)) {
            return false;
        }
        by_rows(end, n, n_threads, [=](int64_t top, int64_t bottom) {
            for (int64_t r = top; r < bottom; r++) {
                double * row = a + r * n;
                for (int64_t i = first; i < end; i++) {
                    const double * other = a + i * n;
                    double         sum   = row[i];
                    for (int64_t k = first; k < i; k++) {
                        sum -= row[k] * other[k];
                    }
                    row[i] = sum / other[i];
                }
            }
        });
        by_rows(end, n, n_threads, [=](int64_t top, int64_t bottom) {
            add_product(Product<double>{a + top * n + first, n, 1, a + end * n + first, 1, n,
                                        a + top * n + end, n, bottom - top, bottom - end,
                                        end - first, -1.0});
        });
    }
    return true;
}

// The inverse of an upper triangular matrix of at most kGroup rows.
void invert_upper(const double * upper, double * inverse, int64_t n) {
    std::fill(inverse, inverse + n * n, 0.0);
    for (int64_t i = n - 1; i >= 0; i--) {
        double *     row  = inverse + i * n;
        const double unit = 1.0 / upper[i * n + i];
        row[i]            = unit;
        for (int64_t k = i + 1; k < n; k++) {
            const double   factor = -unit * upper[i * n + k];
            const double * other  = inverse + k * n;
            for (int64_t j = k; j < n; j++) {
                row[j] += factor * other[j];
            }
        }
    }
}

// Columns [first, end) of the feedback, from the lower factor of the reversed moments.
void fill_group(const double * lower, int64_t n, int64_t first, int64_t end, float * feedback) {
    const int64_t       width = end - first;
    std::vector<double> factor(end * width), corner(width * width), product(end * width);
    for (int64_t i = 0; i < end; i++) {
        for (int64_t j = std::max(i, first); j < end; j++) {
            factor[i * width + j - first] = lower[(n - 1 - i) * n + n - 1 - j];
        }
    }
    invert_upper(factor.data() + first * width, corner.data(), width);
    add_product(Product<double>{factor.data(), width, 1, corner.data(), width, 1, product.data(),
                                width, first, width, width, 1.0});
    std::copy(corner.begin(), corner.end(), product.begin() + first * width);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < width; j++) {
            feedback[i * n + first + j] = i < end ? float(product[i * width + j]) : 0.0f;
        }
    }
}

double mean_diagonal(const float * moments, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += moments[i * n + i];
    }
    return sum / double(n);
}

// A value of the diagonal, damped; a column that nothing entered counts like the mean one, so that
// only its own rounding decides about it.
double damped_value(double value, double mean, double damping) {
    return (value > 0 ? value : mean) + damping * mean;
}

// a: the lower half of the moments with rows and columns reversed, damped.
void damped_reversed(const float * moments, int64_t n, double mean, double damping, double * a) {
    for (int64_t i = 0; i < n; i++) {
        const float * row  = moments + (n - 1 - i) * n;
        double *      into = a + i * n;
        for (int64_t j = 0; j <= i; j++) {
            into[j] = row[n - 1 - j];
        }
        into[i] = damped_value(into[i], mean, damping);
    }
}

// The moments whole, damped.
void damped_whole(const float * moments, int64_t n, double mean, double damping, float * whole) {
    for (int64_t i = 0; i < n; i++) {
        whole[i * n + i] = float(damped_value(moments[i * n + i], mean, damping));
        for (int64_t j = i + 1; j < n; j++) {
            whole[i * n + j] = whole[j * n + i] = moments[i * n + j];
        }
    }
}

}  // namespace

INFEROS_API int32_t inferos_feedback(const float * moments, int64_t n, int32_t n_threads,
                                     float * feedback, float * importance, double * damping,
                                     float * damped) {
    if (n < 1) {
        return INFEROS_BAD_SHAPE;
    }
    const double mean = mean_diagonal(moments, n);
    if (!(mean > 0) || !std::isfinite(mean)) {
        return INFEROS_NOT_FINITE;
    }
    try {
        const std::unique_ptr<double[]> a(new double[n * n]);
        for (;; *damping *= 10) {
            if (*damping > kMostDamping) {
                return INFEROS_NOT_FINITE;
            }
            damped_reversed(moments, n, mean, *damping, a.get());
            if (factor(a.get(), n, n_threads)) {
                break;
            }
        }
        damped_whole(moments, n, mean, *damping, damped);
        for (int64_t i = 0; i < n; i++) {
            const double pivot = a[(n - 1 - i) * n + n - 1 - i];
            importance[i]      = float(pivot * pivot / mean);
        }
        const int64_t        n_groups = (n + kGroup - 1) / kGroup;
        std::atomic<int64_t> next{0};
        inferos::in_parallel(
            std::max<int64_t>(1, std::min<int64_t>(n_threads, n_groups)), [&](int64_t) {
                for (int64_t g = next++; g < n_groups; g = next++) {
                    fill_group(a.get(), n, g * kGroup, std::min((g + 1) * kGroup, n), feedback);
                }
            });
    } catch (const std::bad_alloc &) {
        return INFEROS_NO_MEMORY;
    }
    return INFEROS_OK;
}
