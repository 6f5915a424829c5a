// Which vector of a codebook a few neighbouring columns should take.
#include "compensation/vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "cpu_features.h"

namespace inferos {
namespace {

// Columns that may take the other sign where an even number is to be negative.
constexpr int kFlips = 3;

// What a few neighbouring columns should be, and the corner of the feedback that is theirs.
struct Vector {
    float wanted[kMostColumns];
    float scale[kMostColumns];
    float unit[kMostColumns];  // one by the diagonal
    float onto[kMostColumns][kMostColumns];
    // the sign bit where a column is to have the other sign than it would take
    int32_t flip[kMostColumns];
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
    const CpuFeatures & cpu = cpu_features();
    if (cpu.avx512f && cpu.avx512vl && cpu.avx512dq && cpu.avx512bw && cpu.fma) {
        return vector_losses_avx512(book, vector, losses);
    }
    if (cpu.avx2 && cpu.fma) {
        return vector_losses_avx2(book, vector, losses);
    }
#endif
    vector_losses_baseline(book, vector, losses);
}

const float * best_vector(const Codebook & book, const Vector & vector, float * losses) {
    vector_losses(book, vector, losses);
    return std::min_element(losses, losses + book.n);
}

void set_flip(Vector & vector, int column) {
    for (int i = 0; i < kMostColumns; i++) {
        vector.flip[i] = i == column ? INT32_MIN : 0;
    }
}

// The best vector of those with an odd or even number of negatives; sets which column to flip:
// none, or one of those to which the other sign matters least.
int64_t choose_even(const Codebook & book, Vector & vector, bool odd) {
    const int n = book.columns;
    int       order[kMostColumns];
    std::iota(order, order + n, 0);
    std::stable_sort(order, order + n, [&](int a, int b) {
        return std::fabs(vector.wanted[a]) * vector.unit[a] <
               std::fabs(vector.wanted[b]) * vector.unit[b];
    });
    vector.odd         = odd ? INT32_MIN : 0;
    vector.odd_matters = INT32_MIN;
    float   losses[kMostVectors];
    float   least   = INFINITY;
    int64_t best    = 0;
    int     flipped = -1;
    for (int i = -1; i < kFlips; i++) {
        const int column = i < 0 ? -1 : order[i];
        set_flip(vector, column);
        if (const float * found = best_vector(book, vector, losses); *found < least) {
            least   = *found;
            best    = found - losses;
            flipped = column;
        }
    }
    set_flip(vector, flipped);
    return best;
}

// Sets the low bits of the codes to the signs that the columns take with this vector. What lies
// between two signs may have been rounded otherwise when the losses were compared: the last
// column then makes their number right.
void set_signs(const Codebook & book, const Vector & vector, int64_t entry, int16_t * codes) {
    const int n = book.columns;
    float     left[kMostColumns];
    std::copy_n(vector.wanted, n, left);
    for (int i = 0; i < n; i++) {
        const bool  negative = std::signbit(left[i]) != (vector.flip[i] != 0);
        const float size     = book.levels[i][entry] * vector.scale[i];
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

}  // namespace

int count_negative(const int16_t * codes, int n) {
    return int(std::count_if(codes, codes + n, [](int16_t code) { return code & 1; }));
}

void choose_vector(const Codebook & book, const float * wanted, const float * scales,
                   const float * corner, int64_t width, int others, int16_t * codes) {
    const int n      = book.columns;
    Vector    vector = {};
    for (int i = 0; i < n; i++) {
        vector.wanted[i] = wanted[i];
        vector.scale[i]  = std::fabs(scales[i]);
        vector.unit[i]   = 1.0f / corner[i * width + i];
        for (int j = i + 1; j < n; j++) {
            vector.onto[i][j] = corner[i * width + j];
        }
    }
    int64_t best;
    if (others >= 0) {
        best = choose_even(book, vector, others % 2 != 0);
    } else {
        float losses[kMostVectors];
        best = best_vector(book, vector, losses) - losses;
    }
    std::fill_n(codes, n, int16_t(best << 1));
    set_signs(book, vector, best, codes);
}

}  // namespace inferos
