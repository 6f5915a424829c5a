// A panel against a single column, one row after the other. Memory gives most when it is read in its
// order, and 16 rows side by side are 16 places at once. So a row becomes 16 dot products and 16 scales
// at a time (rows_of.h), which are put aside; when all rows of a panel are there, they are transposed and
// added as everywhere else: lanes are rows, sums follow each other. The bits are the same.
#pragma once

#include "panel.h"
#include "quantize_columns.h"
#include "rows_of.h"

namespace {

// How far ahead of its use memory is fetched where it is read in its order: into the first cache, from
// which scattered pages are used much faster than from the second.
constexpr size_t kFetchAhead = 12288;

// What a type has of sums and of blocks in a group.
template <class W> struct GroupOf {
    static constexpr bool   split  = W::other == Other::split;
    static constexpr int    blocks = split ? kRowGroup / 2 : kRowGroup;
    static constexpr size_t bytes  = static_cast<size_t>(RowOf<W>::units) * W::bytes;
    static_assert(RowOf<W>::units * W::values == blocks * kBlock);

    // A column: as many bytes as the blocks of any other tile, which follow where they fill no group
    struct Column {
        uint8_t quants[blocks * kBlock];  // in the order that the type's blocks meet them
        float   scales[kRowGroup];        // these two in the order of its sums
        int32_t starts[kRowGroup];
    };
    static_assert(sizeof(Column) <= blocks * kColumnBytes);
    static constexpr size_t column_bytes = blocks * kColumnBytes;
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

// put_aside: sums of each row
template <class Isa, class W, int put_aside>
void panel_by_rows(const uint8_t * panel, size_t row_stride, int64_t n_units, const uint8_t * tile,
                   float * out, const uint8_t * ahead) {
    using Group = GroupOf<W>;
    using Row   = RowOf<W>;
    static_assert(Isa::lanes == kRowGroup);
    constexpr int64_t aside_groups = put_aside / kRowGroup;
    // what is not fetched while the rows are read
    constexpr int64_t more_lines =
        (Isa::lanes * (Group::bytes - Row::lines * kLine) + kLine - 1) / kLine;
    alignas(64) float dots[Isa::lanes][put_aside], scales[Isa::lanes][put_aside];

    const size_t  panel_bytes = Isa::lanes * static_cast<size_t>(n_units) * W::bytes;
    const int64_t n_groups    = n_units / Row::units;
    // rows that are read in parts are not read in memory's order
    const bool in_parts = n_groups > aside_groups || panel_bytes < kFetchAhead;
    LinesAhead lines(panel, panel_bytes, in_parts ? panel_bytes : kFetchAhead, ahead);
    const auto fetch  = [&]() ALWAYS { lines.fetch(); };
    const auto column = [&](int64_t group) {
        return reinterpret_cast<const typename Group::Column *>(tile + static_cast<size_t>(group) *
                                                                           Group::column_bytes);
    };
    auto sum = Isa::zero();
    for (int64_t first = 0; first < n_groups; first += aside_groups) {
        const int64_t n = n_groups - first < aside_groups ? n_groups - first : aside_groups;
        for (int r = 0; r < Isa::lanes; r++) {
            const uint8_t * p = panel + static_cast<size_t>(r) * row_stride +
                                static_cast<size_t>(first) * Group::bytes;
            for (int64_t g = 0; g < n; g++, p += Group::bytes) {
                const auto * x    = column(first + g);
                const auto   sums = Row::template read<Isa>(p, x->quants, fetch);
                const auto   dot  = needs_start<Isa, W>()
                                        ? Isa::add_ints(sums.dots, Isa::load(x->starts))
                                        : sums.dots;
                Isa::store_floats(&dots[r][g * kRowGroup], Isa::to_float(dot));
                Isa::store_floats(&scales[r][g * kRowGroup],
                                  Isa::mul(sums.scales, Isa::load_floats(x->scales)));
            }
        }
        for (int64_t g = 0; g < n; g++) {
            for (int64_t i = 0; i < more_lines; i++) {
                lines.fetch();
            }
            const auto rows_of = [&](const float (*aside)[put_aside], typename Isa::Int * v)
                                     ALWAYS {
                                         for (int r = 0; r < Isa::lanes; r++) {
                                             v[r] = Isa::load(&aside[r][g * kRowGroup]);
                                         }
                                         transpose_words<Isa>(v);
                                     };
            typename Isa::Int dot[kRowGroup], scale[kRowGroup];
            rows_of(dots, dot);
            rows_of(scales, scale);
            for (int i = 0; i < kRowGroup; i++) {
                const int at = place_of(i);
                sum          = Isa::fma(Isa::as_float(dot[at]), Isa::as_float(scale[at]), sum);
            }
        }
    }
    tile += static_cast<size_t>(n_groups) * Group::column_bytes;
    panel += static_cast<size_t>(n_groups) * Group::bytes;
    each_block<Isa, W, true>(panel, row_stride, n_units - n_groups * Row::units,
                             [&](const auto & w) ALWAYS {
                                 for (int i = 0; i < W::bytes * kBlock / W::values * Isa::lanes;
                                      i += static_cast<int>(kLine)) {
                                     lines.fetch();
                                 }
                                 add_block<Isa, W, 1>(w, tile, &sum);
                                 tile += kColumnBytes;
                             });
    Isa::store_floats(out, sum);
}

template <class Isa, class W>
void one_by_rows(const uint8_t * panel, size_t row_stride, int64_t n_units, const uint8_t * tile,
                 float * out, size_t, const uint8_t * ahead) {
    using Row           = RowOf<W>;
    constexpr int usual = Row::put_aside, more = usual + usual / 2;
    if constexpr (Row::most_units / Row::units * int64_t{kRowGroup} > usual) {
        // half as many more if that saves reading a row in parts
        const int64_t n = n_units / Row::units * kRowGroup;
        if (n > usual && n <= more) {
            panel_by_rows<Isa, W, more>(panel, row_stride, n_units, tile, out, ahead);
            return;
        }
    }
    panel_by_rows<Isa, W, usual>(panel, row_stride, n_units, tile, out, ahead);
}

// As quantize_columns, a single column for one_by_rows.
template <class W, class Block>
void quantize_by_rows(const float * x, int64_t n_blocks, int32_t offset, bool split, int32_t,
                      int32_t, uint8_t * tile) {
    using Group                = GroupOf<W>;
    constexpr int sums_a_block = kRowGroup / Group::blocks;
    for (; n_blocks >= Group::blocks; n_blocks -= Group::blocks) {
        uint8_t blocks[Group::blocks][kColumnBytes];
        quantize_columns<Block>(x, Group::blocks, offset, split, 1, 0, blocks[0]);
        auto * group = reinterpret_cast<typename Group::Column *>(tile);
        for (int i = 0; i < kRowGroup; i++) {
            const uint8_t * block = blocks[i / sums_a_block];
            const int       part = i % sums_a_block, at = place_of(i);
            for (int half = 0; half < 2 / sums_a_block; half++) {
                __builtin_memcpy(group->quants + RowOf<W>::column(i, half),
                                 block + 16 * (part + half), 16);
            }
            __builtin_memcpy(&group->scales[at], block + kBlock, 4);
            __builtin_memcpy(&group->starts[at], block + kBlock + 4 + 4 * part, 4);
        }
        x += Group::blocks * kBlock;
        tile += Group::column_bytes;
    }
    quantize_columns<Block>(x, n_blocks, offset, split, 1, 0, tile);
}

}  // namespace
