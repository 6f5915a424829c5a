// What the kernels of every instruction set offer, and the layouts that they share.
//
// A panel is `rows` neighbouring rows of weights (or of K in the cache), one per 32-bit lane of a
// vector. A tile is up to 8 columns of activations, quantized to int8 in blocks of 32 with one
// scale each, as ggml's q8_0 rounds them. Per block of a tile of `width` columns come
//     int8   quants[width][32]
//     float  scale[width]       that of q8_0, rounded to float16
//     int32  start0[width]      -offset * (sum of the quants, of the first 16 for split types)
//     int32  start1[width]      the same of the last 16, for types with a scale per 16; a float for
//                               types with a minimum per 16: scale * (sum of the last 16 quants)
//     float  sum[width]         scale * (sum of the quants, of the first 16 for split types), for
//                               types with a minimum
//
// Every column's result is one chain of fused multiply-adds in the order of the blocks, whatever
// the width of its tile: a token's result does not depend on the other tokens.
#pragma once

#include <cstddef>
#include <cstdint>

namespace inferos::kernels {

constexpr size_t kLine        = 64;  // bytes of a cache line
constexpr int    kTile        = 8;
constexpr int    kLeastOfTwo  = 4;  // columns of a tile for two panels at once
constexpr int    kMostOfTwo   = 6;
constexpr int    kWideTile    = 16;  // columns of a tile for matrix instructions, at most
constexpr int    kBlock       = 32;
constexpr size_t kColumnBytes = 48;   // of a column's share of a tile, per block
constexpr int    kMostRows    = 16;   // of a panel, in any instruction set
constexpr int    kRowGroup    = 16;   // sums of a row that are read at once, see by_rows.h
constexpr int    kMostHead    = 256;  // values of a head

// A processor that has too many lines on their way already drops what else it is asked to fetch. Where
// that matters a line is asked for this many bytes early, and then again.
constexpr size_t kAskedTwice = 4096;

// Fetches a line of memory into the second cache. The empty statement keeps the compiler from
// taking a function that does nothing else for one without effect, and leaving its calls out.
[[gnu::always_inline]] inline void fetch_line(const uint8_t * p) {
    __builtin_prefetch(p, 0, 2);
    __asm__ volatile("");
}
// The same into the first cache.
[[gnu::always_inline]] inline void fetch_line_near(const uint8_t * p) {
    __builtin_prefetch(p, 0, 3);
    __asm__ volatile("");
}

// One tile against a panel in the file's layout; out[column * out_stride + row]. ahead: what follows
// in memory, as long as a panel without gaps, which is fetched meanwhile (asked for up to kAskedTwice
// beyond that); null for nothing.
using FewKernel    = void (*)(const uint8_t * panel, size_t row_stride, int64_t n_units,
                              const uint8_t * tile, float * out, size_t out_stride,
                              const uint8_t * ahead);
using UnpackKernel = void (*)(const uint8_t * panel, size_t row_stride, int64_t n_units,
                              uint8_t * unpacked);
// What is read next: some rows, or a part of each, fetched a few lines at a time, as a processor drops
// most of what it is asked for all at once.
struct Fetch {
    const uint8_t * row;
    size_t          row_stride;
    int32_t         n_lines;  // of each row
    int32_t         line;     // the next of this row
    int64_t         left;
    int64_t         per_block;

    // While n_blocks are computed.
    [[gnu::always_inline]] void run(int64_t n_blocks) {
        for (int64_t j = 0; j < n_blocks * per_block && left > 0; j++, left--) {
            fetch_line(row + kLine * static_cast<size_t>(line));
            if (++line == n_lines) {
                line = 0;
                row += row_stride;
            }
        }
    }
};

// One tile against an unpacked panel; adds to out unless it is the first part of the row.
using ManyKernel = void (*)(const uint8_t * unpacked, int64_t n_blocks, const uint8_t * tile,
                            float * out, size_t out_stride, bool first, Fetch * fetch);

// The same for two panels, unpacked panel_bytes from each other; the second one's rows follow.
using TwoPanelsKernel = void (*)(const uint8_t * unpacked, size_t panel_bytes, int64_t n_blocks,
                                 const uint8_t * tile, float * out, size_t out_stride, bool first,
                                 Fetch * fetch);

// A block of 32 floats into its place in a tile; `block` is the tile's block.
using QuantizeKernel = void (*)(const float * x, int64_t n_blocks, int32_t offset, bool split,
                                int32_t width, int32_t column, uint8_t * tile);

// A single column, whose rows are read a few at a time (by_rows.h); its tile is laid out otherwise.
struct ByRows {
    FewKernel      kernel;  // null: there is none
    QuantizeKernel quantize;
    int32_t        least_units;  // of a row
};

// A type of weights. A unit is its own block: 32 or 256 values of a row.
struct WeightType {
    int32_t      type;  // ggml_type
    int32_t      unit_values;
    int32_t      unit_bytes;
    int32_t      offset;      // what the unpacked, unsigned quants exceed the signed ones by
    bool         split;       // a scale or a minimum per 16 values: two starts per block
    FewKernel    few[kTile];  // [width - 1]
    UnpackKernel unpack;
    ManyKernel   many[kTile];
    // [width - kLeastOfTwo]; null where a panel at a time is as fast
    TwoPanelsKernel many_of_two[kMostOfTwo - kLeastOfTwo + 1];
    size_t          unpacked_bytes;  // per block of a panel
    ByRows          by_rows;
    // Columns for these weights; null: the variant's own.
    QuantizeKernel quantize;
    // The same with instructions for matrices, for tiles of kTile to kWideTile columns; null where
    // there are none. Their weights are unpacked signed.
    UnpackKernel unpack_signed;
    ManyKernel   many_wide[kWideTile - kTile + 1];  // [width - kTile]
};

// Neighbouring rows of n float weights, a multiple of 16, against neighbouring columns:
// out[column * out_stride + row]. Strides of x and out are in floats. fetches: as many rows follow,
// and are fetched meanwhile.
using FloatKernel = void (*)(const uint8_t * rows, size_t row_stride, int64_t n, const float * x,
                             size_t x_stride, float * out, size_t out_stride, bool fetches);

constexpr int kFloatTile = 4;  // rows and columns of a tile, at most

// A type of float weights.
struct FloatType {
    int32_t     type;  // ggml_type
    int32_t     value_bytes;
    int32_t     tile;                 // rows and columns, at most, of a call
    FloatKernel product[kFloatTile];  // of `tile` rows; [columns - 1]
    FloatKernel of_a_row[kFloatTile];
};

// What a query has seen of the positions so far: of its scores the largest, of their exponentials
// the sum, and the values, weighted by them. A largest of -infinity: nothing yet.
struct Seen {
    alignas(64) float values[kMostHead];
    float largest;
    float sum;
};

// The scores of a panel of K. Meanwhile `fetch` is run once a block, or for float16 once a row.
using ScoresKernel = void (*)(const uint8_t * panel, size_t row_stride, int64_t n_units,
                              const uint8_t * tile, float * out, size_t out_stride, Fetch fetch);

// A panel of V, position by position: out[c] += p[c][position] * V. p[c] is at c * p_stride.
// Meanwhile `fetch` is run once a block.
using ValuesKernel = void (*)(const uint8_t * panel, size_t row_stride, int32_t n_blocks,
                              const float * p, size_t p_stride, Seen * out, Fetch fetch);

// Scores into exponentials, in place, for n_positions, a multiple of a panel; sets largest and sum.
// A position whose mask is -infinity is not looked at. mask: float16, or null for none.
using SoftmaxKernel = void (*)(float * scores, int64_t n_positions, float scale,
                               const uint16_t * mask, float slope, Seen * seen);

// Adds what was seen of later positions.
using MergeKernel = void (*)(Seen * into, const Seen * later, int32_t n_blocks);

// A type of the KV cache. For quantized K, `scores` takes tiles, as a product does; for float16 a
// tile is float queries[width][head size].
struct CacheType {
    int32_t      type;
    int32_t      block_bytes;  // of 32 values
    bool         quantized;
    int32_t      offset;
    ScoresKernel scores[kTile];
    ValuesKernel values[kTile];
};

struct AttentionKernels {
    const CacheType * types;
    int32_t           n_types;
    SoftmaxKernel     softmax;
    MergeKernel       merge;
};

// Operations on rows of n float32, n a multiple of 16. y may be x or a; every value is computed in
// the same way by all variants.
struct RowKernels {
    // (x - mean) / sqrt(variance + epsilon)
    void (*norm)(int64_t n, const float * x, float epsilon, float * y);
    void (*add)(int64_t n, const float * a, const float * b, float * y);
    void (*mul)(int64_t n, const float * a, const float * b, float * y);
    void (*div)(int64_t n, const float * a, const float * b, float * y);
    void (*scale)(int64_t n, const float * x, float factor, float offset, float * y);
    // x * Phi(x) (Hendrycks and Gimpel, arXiv:1606.08415), by their approximation with tanh, and by
    // the error function
    void (*gelu)(int64_t n, const float * x, float * y);
    void (*gelu_erf)(int64_t n, const float * x, float * y);
    // n pairs (x[i], x[i + n]), turned by angles of these cosines and sines; n of any size
    void (*rotate)(int64_t n, const float * x, const float * cosines, const float * sines,
                   float * y);
    // The product with Hadamard's matrix of n rows over sqrt(n), n a power of two
    void (*hadamard)(int64_t n, const float * x, float * y);
};

// This many rounds of work that needs no memory, and a sum that keeps it from being left out.
using ProbeKernel = int32_t (*)(int64_t n_rounds);
struct Probe {
    ProbeKernel run;
    int64_t     multiplied;  // multiply-adds of a round
};

struct Variant {
    const char *       name;
    int32_t            rows;  // of a panel
    QuantizeKernel     quantize;
    const WeightType * types;
    int32_t            n_types;
    const FloatType *  float_types;
    int32_t            n_float_types;
    AttentionKernels   attention;
    RowKernels         rows_of_floats;
    Probe              multiply;  // products of bytes alone, from registers
    Probe              blocks;    // a block against a full tile, scales included, from the cache
    // Called by a thread after a product with wide tiles; null where there are none.
    void (*leave_tiles)();
};

// Each is compiled for its own kind of processor. Whether the CPU can run it is asked in
// variants.cpp.
const Variant * variant_avx2();
const Variant * variant_avxvnni();
const Variant * variant_avx512vnni();
const Variant * variant_avx512vbmi();
const Variant * variant_amx();           // null: this compiler does not know the instructions
const Variant * variant_amx_emulated();  // the same on any CPU with AVX-512 VNNI: for tests
bool has_emulated_shapes();              // the calling thread's emulated matrices have shapes
const Variant * variant_neon();

// The variant in use: the best that this CPU is known to run, unless another has been chosen; null:
// none. AMX must be chosen, since it is first tried in another process.
const Variant * best_variant();
void choose_variant(const Variant & variant);
// By name, if this CPU runs it. For AMX the system is asked first.
const Variant * variant_named(const char * name);
// This CPU and its system have AMX for bytes, and the compiler knew it.
bool has_amx();
const WeightType * find_type(const Variant & variant, int32_t type);
const FloatType * find_float_type(const Variant & variant, int32_t type);

// Why no variant runs here; empty if one does.
const char * missing_features();

}  // namespace inferos::kernels
