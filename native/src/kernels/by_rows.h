// A panel against a single column, one row after the other. Memory gives most when it is read in its
// order, and 16 rows side by side are 16 places at once. So 16 blocks of a row become 16 dot products
// and 16 scales, which are put aside; when all rows of a panel are there, they are transposed and
// added as everywhere else: lanes are rows, blocks follow each other. The bits are the same.
#pragma once

#include "panel.h"
#include "quantize_columns.h"

namespace {

using inferos::kernels::kRowGroup;

// Blocks of each row that are put aside: 16 KB in all, so that the first cache keeps them.
constexpr int64_t kAside = 128;
// How far ahead of its use memory is fetched where it is read in its order: into the first cache, from
// which scattered pages are used much faster than from the second.
constexpr size_t kFetchAhead = 12288;

// A tile of one column for rows read in this way, by groups of kRowGroup blocks. Blocks that fill no
// group follow as in any other tile.
struct ColumnGroup {
    uint8_t quants[kRowGroup * kBlock];  // in the order that the type's blocks meet them
    float   scales[kRowGroup];           // these two in the order 0, 4, 8, 12, 1, 5 and so on
    int32_t starts[kRowGroup];
    uint8_t unused[kRowGroup * (kColumnBytes - kBlock - 8)];
};
static_assert(sizeof(ColumnGroup) == kRowGroup * kColumnBytes);

// The place in that order
constexpr int transposed(int block) {
    return block / 4 + 4 * (block % 4);
}

// What each type does with a group of a row's blocks. place(): where a column's quants 16 `half` to
// 16 `half` + 15 of a block go. read(): the dot products, without starts, and the scales as float16 in
// the low half of a vector, both in the order above; between() runs once every kLine bytes.
template <class W> struct RowOf {
    static constexpr bool is_read = false;
};
template <class Isa, class W> constexpr bool reads_rows() {
    return Isa::lanes == kRowGroup && RowOf<W>::is_read;
}

// n[i] of four vectors: the sum of the four words in each 128-bit lane of them, by lanes
template <class Isa>
INLINE typename Isa::Int add_across(typename Isa::Int a, typename Isa::Int b, typename Isa::Int c,
                                    typename Isa::Int d) {
    const auto ab = Isa::add_ints(Isa::unpack_low32(a, b), Isa::unpack_high32(a, b));
    const auto cd = Isa::add_ints(Isa::unpack_low32(c, d), Isa::unpack_high32(c, d));
    return Isa::add_ints(Isa::unpack_low64(ab, cd), Isa::unpack_high64(ab, cd));
}

template <> struct RowOf<Q4_0> {
    static constexpr bool is_read = true;

    static size_t place(int block, int half) {
        return static_cast<size_t>(128 * (block / 4) + 64 * half + 16 * (block % 4));
    }
    template <class Isa, class Between>
    INLINE void read(const uint8_t * p, const uint8_t * quants, typename Isa::Int & dots,
                     typename Isa::Int & scales, Between between) {
        typename Isa::Int sums[4];
        scales = typename Isa::Int{};
        for (int i = 0; i < 4; i++, p += 4 * Q4_0::bytes, quants += 128) {
            const auto heads = Isa::load(p);
            const auto raw   = Isa::load_lanes(p + 2, Q4_0::bytes);
            between();
            const auto low  = Isa::and_bytes(raw, 0x0f);
            const auto high = Isa::and_bytes(Isa::template right<4>(raw), 0x0f);
            sums[i]         = Isa::template dot<false>(typename Isa::Int{}, low, Isa::load(quants));
            sums[i]         = Isa::template dot<false>(sums[i], high, Isa::load(quants + 64));
            // blocks 4 i to 4 i + 3, whose scales are every ninth half
            scales = Isa::template put_halves<0, 9, 18, 27>(scales, 0x1111u << i, heads);
        }
        dots = add_across<Isa>(sums[0], sums[1], sums[2], sums[3]);
    }
};

template <> struct RowOf<Q8_0> {
    static constexpr bool is_read = true;

    static size_t place(int block, int half) { return static_cast<size_t>(32 * block + 16 * half); }

    template <class Isa, class Between>
    INLINE void read(const uint8_t * p, const uint8_t * quants, typename Isa::Int & dots,
                     typename Isa::Int & scales, Between between) {
        typename Isa::Int fours[4];
        scales = typename Isa::Int{};
        for (int i = 0; i < 4; i++) {
            typename Isa::Int sums[2];
            for (int j = 0; j < 2; j++, p += 2 * Q8_0::bytes, quants += 64) {
                const auto heads = Isa::load(p);
                const auto raw   = Isa::load_pair(p + 2, p + 2 + Q8_0::bytes);
                between();
                sums[j] = Isa::template dot<true>(typename Isa::Int{}, Isa::xor_bytes(raw, 0x80),
                                                  Isa::load(quants));
                scales =
                    Isa::template put_halves<0, 17, 0, 17>(scales, 0x11u << (i + 8 * j), heads);
            }
            fours[i] =
                Isa::add_ints(Isa::even_lanes(sums[0], sums[1]), Isa::odd_lanes(sums[0], sums[1]));
        }
        dots = add_across<Isa>(fours[0], fours[1], fours[2], fours[3]);
    }
};

// 16 vectors of 16 words
template <class Isa> INLINE void transpose_words(typename Isa::Int * v) {
    typename Isa::Int t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i]     = Isa::unpack_low32(v[i], v[i + 1]);
        t[i + 1] = Isa::unpack_high32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i]     = Isa::unpack_low64(t[i], t[i + 2]);
        v[i + 1] = Isa::unpack_high64(t[i], t[i + 2]);
        v[i + 2] = Isa::unpack_low64(t[i + 1], t[i + 3]);
        v[i + 3] = Isa::unpack_high64(t[i + 1], t[i + 3]);
    }
    // now lane k of v[4 q + i] has word 4 k + i of rows 4 q to 4 q + 3
    for (int i = 0; i < 4; i++) {
        const auto low_even  = Isa::even_lanes(v[i], v[4 + i]);
        const auto low_odd   = Isa::odd_lanes(v[i], v[4 + i]);
        const auto high_even = Isa::even_lanes(v[8 + i], v[12 + i]);
        const auto high_odd  = Isa::odd_lanes(v[8 + i], v[12 + i]);
        t[i]                 = Isa::even_lanes(low_even, high_even);
        t[4 + i]             = Isa::even_lanes(low_odd, high_odd);
        t[8 + i]             = Isa::odd_lanes(low_even, high_even);
        t[12 + i]            = Isa::odd_lanes(low_odd, high_odd);
    }
    for (int i = 0; i < 16; i++) {
        v[i] = t[i];
    }
}

// Lines in their order: of this panel, then of the one that follows. Without one they are this panel's
// again, which costs little.
class LinesAhead {
  public:
    // at a distance from the first, of a panel of at least as many bytes
    LinesAhead(const uint8_t * panel, size_t n_bytes, size_t distance, const uint8_t * following)
        : at_(panel + distance), end_(panel + n_bytes),
          following_(following != nullptr ? following : panel) {
        turn();
    }
    ALWAYS void fetch() {
        inferos::kernels::fetch_line_near(at_);
        at_ += kLine;
        turn();
    }

  private:
    ALWAYS void turn() {
        if (__builtin_expect(at_ >= end_, 0)) {
            at_  = following_;
            end_ = reinterpret_cast<const uint8_t *>(UINTPTR_MAX);
        }
    }

    const uint8_t * at_;
    const uint8_t * end_;
    const uint8_t * following_;
};

template <class Isa, class W>
void one_by_rows(const uint8_t * panel, size_t row_stride, int64_t n_units, const uint8_t * tile,
                 float * out, size_t, const uint8_t * ahead) {
    static_assert(Isa::lanes == 16 && W::values == kBlock && W::other == Other::none);
    constexpr size_t  group_bytes = kRowGroup * W::bytes;
    constexpr int64_t group_lines = group_bytes / kLine;  // fetched while it is read
    constexpr int64_t more_lines  = (Isa::lanes * group_bytes) / kLine - Isa::lanes * group_lines;
    alignas(64) float dots[Isa::lanes][kAside], scales[Isa::lanes][kAside];

    const size_t  panel_bytes = Isa::lanes * static_cast<size_t>(n_units) * W::bytes;
    const int64_t n_grouped   = n_units / kRowGroup * kRowGroup;
    // rows that are read in parts are not read in memory's order
    const size_t distance =
        n_grouped > kAside || panel_bytes < kFetchAhead ? panel_bytes : kFetchAhead;
    LinesAhead lines(panel, panel_bytes, distance, ahead);
    auto       sum = Isa::zero();
    for (int64_t first = 0; first < n_grouped; first += kAside) {
        const int64_t n = n_grouped - first < kAside ? n_grouped - first : kAside;
        for (int r = 0; r < Isa::lanes; r++) {
            const uint8_t * p =
                panel + static_cast<size_t>(r) * row_stride + static_cast<size_t>(first) * W::bytes;
            const auto * group = reinterpret_cast<const ColumnGroup *>(tile) + first / kRowGroup;
            for (int64_t b = 0; b < n; b += kRowGroup, p += group_bytes, group++) {
                typename Isa::Int dot, scale;
                RowOf<W>::template read<Isa>(p, group->quants, dot, scale,
                                             [&]() ALWAYS { lines.fetch(); });
                dot = Isa::add_ints(dot, Isa::load(group->starts));
                Isa::store_floats(&dots[r][b], Isa::to_float(dot));
                Isa::store_floats(&scales[r][b], Isa::mul(Isa::first_halves(scale),
                                                          Isa::load_floats(group->scales)));
            }
        }
        for (int64_t b = 0; b < n; b += kRowGroup) {
            for (int64_t i = 0; i < more_lines; i++) {
                lines.fetch();
            }
            typename Isa::Int dot[kRowGroup], scale[kRowGroup];
            for (int r = 0; r < Isa::lanes; r++) {
                dot[r]   = Isa::load(&dots[r][b]);
                scale[r] = Isa::load(&scales[r][b]);
            }
            transpose_words<Isa>(dot);
            transpose_words<Isa>(scale);
            for (int i = 0; i < kRowGroup; i++) {
                const int at = transposed(i);
                sum          = Isa::fma(Isa::as_float(dot[at]), Isa::as_float(scale[at]), sum);
            }
        }
    }
    tile += n_grouped * static_cast<int64_t>(kColumnBytes);
    panel += n_grouped * W::bytes;
    each_block<Isa, W, true>(panel, row_stride, n_units - n_grouped, [&](const auto & w) ALWAYS {
        for (int i = 0; i < W::bytes * Isa::lanes; i += static_cast<int>(kLine)) {
            lines.fetch();
        }
        add_block<Isa, W, 1>(w, tile, &sum);
        tile += kColumnBytes;
    });
    Isa::store_floats(out, sum);
}

// As quantize_columns, but that a single column is laid out for one_by_rows.
template <class W, class Block>
void quantize_by_rows(const float * x, int64_t n_blocks, int32_t offset, bool split, int32_t width,
                      int32_t column, uint8_t * tile) {
    for (; width == 1 && n_blocks >= kRowGroup; n_blocks -= kRowGroup) {
        uint8_t blocks[kRowGroup][kColumnBytes];
        quantize_columns<Block>(x, kRowGroup, offset, split, 1, 0, blocks[0]);
        auto * group = reinterpret_cast<ColumnGroup *>(tile);
        for (int b = 0; b < kRowGroup; b++) {
            for (int half = 0; half < 2; half++) {
                __builtin_memcpy(group->quants + RowOf<W>::place(b, half), blocks[b] + 16 * half,
                                 16);
            }
            __builtin_memcpy(&group->scales[transposed(b)], blocks[b] + kBlock, 4);
            __builtin_memcpy(&group->starts[transposed(b)], blocks[b] + kBlock + 4, 4);
        }
        x += kRowGroup * kBlock;
        tile += sizeof(ColumnGroup);
    }
    quantize_columns<Block>(x, n_blocks, offset, split, width, column, tile);
}

}  // namespace
