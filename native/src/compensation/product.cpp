// One source for three widths of vectors. Two vectors of columns of b at a time are copied to a panel
// that stays in the first cache; a tile of rows of a runs over it with its sums in registers.
#include "product.h"

#include <algorithm>
#include <cstring>

#include "cpu_features.h"

namespace inferos {
namespace {

// rows of a panel: 64 KB at most
constexpr int64_t kDepth = 512;

template <typename T, int Bytes, int Rows>
[[gnu::always_inline]] inline void add_tile(const Product<T> & p, const T * a, const T * panel,
                                            T * c, int64_t depth, int64_t width) {
    typedef T     Vector __attribute__((vector_size(Bytes), may_alias));
    constexpr int kLanes        = Bytes / int(sizeof(T));
    Vector        sums[Rows][2] = {};
    for (int64_t k = 0; k < depth; k++) {
        const Vector * b = reinterpret_cast<const Vector *>(panel + k * 2 * kLanes);
        for (int r = 0; r < Rows; r++) {
            const T factor = a[r * p.a_row + k * p.a_column];
            sums[r][0] += b[0] * factor;
            sums[r][1] += b[1] * factor;
        }
    }
    for (int r = 0; r < Rows; r++) {
        T row[2 * kLanes];
        memcpy(row, sums[r], sizeof row);
        for (int64_t j = 0; j < width; j++) {
            c[r * p.c_row + j] += p.sign * row[j];
        }
    }
}

template <typename T, int Bytes, int Rows>
[[gnu::always_inline]] inline void add_product_in(const Product<T> & p) {
    constexpr int64_t kColumns = 2 * Bytes / int64_t(sizeof(T));
    alignas(64) T     panel[kDepth * kColumns];
    for (int64_t first = 0; first < p.k; first += kDepth) {
        const int64_t depth = std::min(kDepth, p.k - first);
        for (int64_t j = 0; j < p.n; j += kColumns) {
            const int64_t width = std::min(kColumns, p.n - j);
            for (int64_t k = 0; k < depth; k++) {
                const T * from = p.b + (first + k) * p.b_row + j * p.b_column;
                T *       to   = panel + k * kColumns;
                for (int64_t i = 0; i < width; i++) {
                    to[i] = from[i * p.b_column];
                }
                std::fill(to + width, to + kColumns, T(0));
            }
            const T * a = p.a + first * p.a_column;
            T *       c = p.c + j;
            int64_t   i = 0;
            for (; i + Rows <= p.m; i += Rows) {
                add_tile<T, Bytes, Rows>(p, a + i * p.a_row, panel, c + i * p.c_row, depth, width);
            }
            for (; i < p.m; i++) {
                add_tile<T, Bytes, 1>(p, a + i * p.a_row, panel, c + i * p.c_row, depth, width);
            }
        }
    }
}

template <typename T> void add_product_baseline(const Product<T> & product) {
    add_product_in<T, 16, 4>(product);
}

#if defined(__x86_64__) || defined(__i386__)
template <typename T>
[[gnu::target("avx2,fma")]] void add_product_avx2(const Product<T> & product) {
    add_product_in<T, 32, 6>(product);
}

template <typename T>
[[gnu::target("avx512f,avx512vl,avx512dq,avx512bw,fma")]] void
add_product_avx512(const Product<T> & product) {
    add_product_in<T, 64, 12>(product);
}

template <typename T> void add_product_best(const Product<T> & product) {
    const CpuFeatures & cpu = cpu_features();
    if (cpu.avx512f && cpu.avx512vl && cpu.avx512dq && cpu.avx512bw && cpu.fma) {
        add_product_avx512(product);
    } else if (cpu.avx2 && cpu.fma) {
        add_product_avx2(product);
    } else {
        add_product_baseline(product);
    }
}
#else
template <typename T> void add_product_best(const Product<T> & product) {
    add_product_baseline(product);
}
#endif

}  // namespace

void add_product(const Product<float> & product) {
    add_product_best(product);
}

void add_product(const Product<double> & product) {
    add_product_best(product);
}

}  // namespace inferos
