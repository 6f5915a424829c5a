// A panel against a single column, two to eight rows at a time. Memory gives most when it is read in its
// order, and 16 rows side by side are 16 places at once. So a row becomes 16 dot products and 16 scales at a
// time (rows_of.h); those of a few rows are put together, so that rows are neighbours, and added one after
// another, as everywhere else. The bits are the same.
#pragma once

#include <algorithm>

#include "panel.h"
#include "quantize_columns.h"
#include "rows_of.h"

namespace {

// How far ahead of its use memory is fetched, at least: into the first cache, from which scattered pages
// are used much faster than from the second. (Of long rows it does not hold as much; shorter distances were
// no faster.)
constexpr size_t kFetchAhead = 8192;

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

// Lines in memory's order: of this panel, then of the one that follows. Without one they are this panel's
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

// A group of n rows: its sums and their scales, those of the rows side by side
template <int n> struct SumsOf {
    alignas(64) float dots[kRowGroup * n], scales[kRowGroup * n];
};

// A vector of each row, whose words are in the order of place_of, so that those of one sum are neighbours
template <class Isa> INLINE void bring_together(typename Isa::Int (&rows)[4]) {
    transpose_fours<Isa>(rows);
}
template <class Isa> INLINE void bring_together(typename Isa::Int (&rows)[2]) {
    const auto first = rows[0];
    rows[0]          = Isa::unpack_low32(first, rows[1]);
    rows[1]          = Isa::unpack_high32(first, rows[1]);
}

template <class Isa, class W, int n>
INLINE void put_together(const RowSums<Isa> (&rows)[n], typename Isa::Int start, SumsOf<n> & out) {
    typename Isa::Int scales[n], starts[n];
    for (int r = 0; r < n; r++) {
        scales[r] = Isa::as_int(rows[r].scales);
        starts[r] = start;
    }
    bring_together<Isa>(scales);
    bring_together<Isa>(starts);
    for (int i = 0; i < n; i++) {
        const auto part = [&](int j) ALWAYS { return rows[j % n].parts[4 / n * i + j / n]; };
        auto       dot  = add_across<Isa>(part(0), part(1), part(2), part(3));
        if constexpr (needs_start<Isa, W>()) {
            dot = Isa::add_ints(dot, starts[i]);
        }
        Isa::store_floats(out.dots + kRowGroup * i, Isa::to_float(dot));
        Isa::store(out.scales + kRowGroup * i, scales[i]);
    }
}

// Where put_together puts a sum of the first row
template <int n> constexpr int begin_of(int sum) {
    constexpr int parts = 4 / n;  // of a vector
    const int     part = sum / 4, lane = sum % 4;
    return kRowGroup * (part / parts) + 4 * lane + n * (part % parts);
}

template <class Isa, class W>
void one_by_rows(const uint8_t * panel, size_t row_stride, int64_t n_units, const uint8_t * tile,
                 float * out, size_t, const uint8_t * following) {
    using Group = GroupOf<W>;
    using Row   = RowOf<W>;
    // additions wait for one another, but not for those of other rows
    constexpr int n = Row::at_once, together = std::min(n, 4), chains = n / together;
    static_assert(Isa::lanes == kRowGroup && Isa::lanes % n == 0);
    // what is not fetched while the rows are read
    constexpr int more_lines =
        (n * static_cast<int>(Group::bytes - Row::lines * kLine) + int{kLine} / 2) / int{kLine};

    const size_t  row_bytes = static_cast<size_t>(n_units) * W::bytes,
                  n_bytes   = Isa::lanes * row_bytes;
    const int64_t n_groups  = n_units / Row::units;
    LinesAhead    lines(panel, n_bytes, std::min(n_bytes, std::max(n * row_bytes, kFetchAhead)),
                        following);
    for (int first = 0; first < Isa::lanes; first += n) {
        const uint8_t *   rows  = panel + static_cast<size_t>(first) * row_stride;
        const uint8_t *   block = tile;
        typename Isa::Few sum[chains];
        std::fill_n(sum, chains, Isa::zero_few());
        for (int64_t g = 0; g < n_groups; g++, rows += Group::bytes, block += Group::column_bytes) {
            const auto &     column = *reinterpret_cast<const typename Group::Column *>(block);
            SumsOf<together> sums[chains];
            for (int c = 0; c < chains; c++) {
                RowSums<Isa> read[together];
                for (int r = 0; r < together; r++) {
                    read[r] = Row::template read<Isa>(
                        rows + static_cast<size_t>(c * together + r) * row_stride, column.quants,
                        [&]() ALWAYS { lines.fetch(); });
                    read[r].scales = Isa::mul(read[r].scales, Isa::load_floats(column.scales));
                }
                put_together<Isa, W, together>(read, Isa::load(column.starts), sums[c]);
            }
            for (int i = 0; i < more_lines; i++) {
                lines.fetch();
            }
            // By way of memory: the units that take vectors apart are busy with putting them together.
            __asm__("" : "+m"(sums));
            for (int i = 0; i < kRowGroup; i++) {
                const int at = begin_of<together>(i);
                for (int c = 0; c < chains; c++) {
                    sum[c] = Isa::template fma_few<together>(sums[c].dots + at, sums[c].scales + at,
                                                             sum[c]);
                }
            }
        }
        for (int c = 0; c < chains; c++) {
            Isa::template store_few<together>(out + first + c * together, sum[c]);
        }
    }
    if (n_groups * Row::units == n_units) {
        return;
    }
    auto sum = Isa::load_floats(out);
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
