// What a tile of queries reads of a part of the cache: which rows, and what is fetched before.
#pragma once

#include <algorithm>
#include <cstring>

#include "ggml.h"
#include "kernels.h"

namespace inferos::kernels {

constexpr int64_t  kPart     = 256;     // positions
constexpr int64_t  kAhead    = 16384;   // bytes that are fetched before they are read
constexpr uint16_t kInfinite = 0xfc00;  // -infinity in float16

// What a layer sees of the past, where the mask holds minus the distance of every position that is
// not hidden, as llama.cpp fills it for ALiBi: the position in the sequence, wherever its cell is.
// Such distances are not added to the scores.
struct Window {
    bool     is_used   = false;      // the mask holds distances for this purpose
    uint16_t hide_from = kInfinite;  // the first distance that is hidden, negative, in float16

    // A layer that sees `size` tokens with its own; 0: all of them.
    static Window of(int32_t size) {
        return {true, size > 0 ? ggml_fp32_to_fp16(-static_cast<float>(size)) : kInfinite};
    }
};

// Up to 8 queries of a head of a sequence.
struct Tile {
    int64_t sequence, head, first;
    int32_t width;
};

// Blocks of a head's values; the last one of float16 may be a part of one, which is read as if zeros
// followed.
inline int64_t blocks_of(const ggml_tensor * cache) {
    return (cache->ne[0] + kBlock - 1) / kBlock;
}

// A head's rows of a part, in the cache.
struct Rows {
    const uint8_t * start;
    size_t          stride;
    int64_t         n;
    int64_t         n_bytes;         // of a row
    int64_t         n_padded_bytes;  // of a row of whole blocks

    // `tile` is of n_heads heads, which may be more than the cache's.
    Rows(const ggml_tensor * cache, int32_t block_bytes, const Tile & tile, int64_t n_heads,
         int64_t first)
        : start(static_cast<const uint8_t *>(cache->data) +
                static_cast<size_t>(tile.head / (n_heads / cache->ne[2])) * cache->nb[2] +
                static_cast<size_t>(tile.sequence) * cache->nb[3] +
                static_cast<size_t>(first) * cache->nb[1]),
          stride(cache->nb[1]), n(std::min(kPart, cache->ne[1] - first)),
          n_bytes(cache->ne[0] * block_bytes / kBlock),
          n_padded_bytes(blocks_of(cache) * block_bytes) {}
    Rows() = default;

    const uint8_t * at(int64_t row) const { return start + static_cast<size_t>(row) * stride; }

    // What is fetched of n_rows rows in n_times.
    Fetch coming(int64_t row, int64_t n_rows, int64_t n_times) const {
        constexpr auto line  = static_cast<int64_t>(kLine);
        const bool     whole = n_bytes % line == 0 && stride % kLine == 0;
        const int64_t  lines = n_bytes / line + (whole ? 0 : 2);  // else they begin anywhere
        const int64_t  total = lines * std::max<int64_t>(0, std::min(n_rows, n - row));
        return {at(row), stride, static_cast<int32_t>(lines),
                0,       total,  (total + n_times - 1) / n_times};
    }
};

// K's panels are read in turn, then V's. Those that the mask hides from every query are left out.
struct Reading {
    Tile     tile;
    Rows     keys, values;
    int32_t  rows;  // of a panel
    int64_t  n_panels;
    int64_t  n_positions;    // to the end of the last panel
    int64_t  panels[kPart];  // their first rows
    uint16_t masks[kTile][kPart];

    // The masks of every query, and with them the panels. Positions past the end are masked out.
    void read_masks(const ggml_tensor * mask, const Window & window, int64_t first) {
        const int64_t n = keys.n, n_padded = (n + rows - 1) / rows * rows;
        for (int32_t c = 0; c < tile.width; c++) {
            if (mask != nullptr) {
                const uint8_t * row =
                    static_cast<const uint8_t *>(mask->data) +
                    static_cast<size_t>(tile.first + c) * mask->nb[1] +
                    static_cast<size_t>(tile.head % mask->ne[2]) * mask->nb[2] +
                    static_cast<size_t>(tile.sequence % mask->ne[3]) * mask->nb[3];
                std::memcpy(masks[c], row + static_cast<size_t>(first) * sizeof(uint16_t),
                            static_cast<size_t>(n) * sizeof(uint16_t));
            } else {
                std::fill_n(masks[c], n, uint16_t{0});
            }
            std::fill(masks[c] + n, masks[c] + n_padded, kInfinite);
            if (window.hide_from != kInfinite) {
                hide(masks[c], n, window.hide_from);
            }
        }
        n_panels = n_positions = 0;
        for (int64_t i = 0; i < n_padded; i += rows) {
            if (is_seen(i)) {
                panels[n_panels++] = i;
                n_positions        = i + rows;
            }
        }
    }

    // How many panels are fetched before they are read: not more than the reading has, since no panel
    // but those of the next is fetched from here.
    int64_t ahead() const {
        const int64_t most = kAhead / (rows * std::max(keys.n_bytes, values.n_bytes));
        return std::max<int64_t>(1, std::min(most, 2 * n_panels));
    }

    // Panel i of those of K and V, to be fetched in n_times; past them those of `next`, if any.
    Fetch coming(int64_t i, const Reading * next, int64_t n_times) const {
        if (i < n_panels) {
            return keys.coming(panels[i], rows, n_times);
        }
        if (i < 2 * n_panels) {
            return values.coming(panels[i - n_panels], rows, n_times);
        }
        return next != nullptr ? next->coming(i - 2 * n_panels, nullptr, n_times) : Fetch{};
    }

  private:
    // Of negative numbers in float16, the bits of the larger ones are the larger ones, too; 0, a
    // query's own position, has the smallest.
    static void hide(uint16_t * mask, int64_t n, uint16_t from) {
        for (int64_t i = 0; i < n; i++) {
            mask[i] = mask[i] >= from ? kInfinite : mask[i];
        }
    }

    bool is_seen(int64_t panel) const {
        constexpr uint64_t four = 0x0001000100010001 * uint64_t{kInfinite};
        for (int32_t c = 0; c < tile.width; c++) {
            for (int32_t i = 0; i < rows; i += 4) {
                uint64_t word;
                std::memcpy(&word, masks[c] + panel + i, sizeof(word));
                if (word != four) {
                    return true;
                }
            }
        }
        return false;
    }
};

}  // namespace inferos::kernels
