// A unit of work is one head of one sequence with a tile of up to 8 queries. It sees the positions
// in parts of 256, each from a fresh start, which are then merged in order. Where parts begin does
// not depend on the number of queries or threads, so neither does the result; and where units are
// fewer than threads need, the parts of one are computed by several.
#include "attention_op.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ggml.h"

namespace inferos::kernels {
namespace {

constexpr int64_t  kPart      = 256;  // positions
constexpr int64_t  kUnitsEach = 4;    // units per thread that even out between threads
constexpr uint16_t kInfinite  = 0xfc00;  // -infinity in float16

const CacheType * cache_type_of(const Variant & variant, int32_t type) {
    for (int32_t i = 0; i < variant.attention.n_types; i++) {
        if (variant.attention.types[i].type == type) {
            return &variant.attention.types[i];
        }
    }
    return nullptr;
}

struct Parameters {
    float scale, max_bias, softcap;
};

Parameters parameters_of(const ggml_tensor * op) {
    Parameters read;
    std::memcpy(&read, op->op_params, sizeof(read));
    return read;
}

// The slope of a head: "Train Short, Test Long" (arXiv:2108.12409), as ggml extends it to numbers
// of heads that are no power of two.
float alibi_slope(float max_bias, int64_t head, int64_t n_head) {
    if (max_bias <= 0.0f) {
        return 1.0f;
    }
    int64_t power = 1;
    while (power * 2 <= n_head) {
        power *= 2;
    }
    const bool  beyond = head >= power;
    const float base   = std::pow(2.0f, -(beyond ? max_bias / 2.0f : max_bias) /
                                            static_cast<float>(power));
    return std::pow(base, static_cast<float>(beyond ? 2 * (head - power) + 1 : head + 1));
}

// What a thread works with.
struct Desk {
    alignas(64) uint8_t tile[kTile * kMostHead * sizeof(float)];
    alignas(64) float scores[kTile][kPart];
    alignas(64) uint8_t rows[kMostRows * kMostHead * sizeof(uint16_t)];  // of a partial panel
    Seen seen[kTile];
    Seen part[kTile];
};

struct Tile {
    int64_t sequence, head, first;
    int32_t width;
};

class Attention {
  public:
    Attention(const Variant & variant, const ggml_tensor * op)
        : variant_(variant), kernels_(variant.attention), op_(op), q_(op->src[0]), k_(op->src[1]),
          v_(op->src[2]), mask_(op->src[3]), k_type_(*cache_type_of(variant, k_->type)),
          v_type_(*cache_type_of(variant, v_->type)), parameters_(parameters_of(op)),
          n_tiles_((q_->ne[1] + kTile - 1) / kTile) {}

    int64_t n_units() const { return q_->ne[3] * q_->ne[2] * n_tiles_; }
    int64_t n_parts() const { return (k_->ne[1] + kPart - 1) / kPart; }

    Tile tile(int64_t unit) const {
        const int64_t t     = unit % n_tiles_;
        const int64_t rest  = unit / n_tiles_;
        const int64_t first = t * q_->ne[1] / n_tiles_;
        const int64_t end   = (t + 1) * q_->ne[1] / n_tiles_;
        return {rest / q_->ne[2], rest % q_->ne[2], first, static_cast<int32_t>(end - first)};
    }

    void read_queries(const Tile & tile, Desk & desk) const {
        const int64_t n = q_->ne[0];
        for (int32_t c = 0; c < tile.width; c++) {
            const auto * query = reinterpret_cast<const float *>(
                static_cast<const uint8_t *>(q_->data) +
                static_cast<size_t>(tile.first + c) * q_->nb[1] +
                static_cast<size_t>(tile.head) * q_->nb[2] +
                static_cast<size_t>(tile.sequence) * q_->nb[3]);
            if (k_type_.quantized) {
                variant_.quantize(query, n / kBlock, k_type_.offset, false, tile.width, c,
                                  desk.tile);
            } else {
                std::memcpy(desk.tile + static_cast<size_t>(c * n) * sizeof(float), query,
                            static_cast<size_t>(n) * sizeof(float));
            }
        }
    }

    // What the tile's queries see of a part.
    void see_part(const Tile & tile, int64_t part, Desk & desk, Seen * seen) const {
        const int64_t first    = part * kPart;
        const int64_t n        = std::min(kPart, k_->ne[1] - first);
        const int64_t rows     = variant_.rows;
        const int64_t n_padded = (n + rows - 1) / rows * rows;
        const int32_t blocks_k = static_cast<int32_t>(k_->ne[0] / kBlock);
        const int32_t blocks_v = static_cast<int32_t>(v_->ne[0] / kBlock);
        uint16_t      masks[kTile][kPart];
        bool          wanted[kPart];
        read_masks(tile, first, n, n_padded, masks, wanted);

        const uint8_t * keys = slice(k_, tile) + static_cast<size_t>(first) * k_->nb[1];
        for (int64_t i = 0; i < n; i += rows) {
            if (!wanted[i / rows]) {
                continue;
            }
            fetch(keys, k_, i + rows, n, k_type_.block_bytes * blocks_k);
            const Panel panel = panel_at(keys, k_, i, n, k_type_.block_bytes * blocks_k, desk);
            k_type_.scores[tile.width - 1](panel.start, panel.stride, blocks_k, desk.tile,
                                           &desk.scores[0][i], kPart, nullptr);
        }
        const float slope = alibi_slope(parameters_.max_bias, tile.head, q_->ne[2]);
        for (int32_t c = 0; c < tile.width; c++) {
            kernels_.softmax(desk.scores[c], n_padded, parameters_.scale, masks[c], slope,
                             &seen[c]);
            std::fill_n(seen[c].values, v_->ne[0], 0.0f);
        }
        const uint8_t * values = slice(v_, tile) + static_cast<size_t>(first) * v_->nb[1];
        for (int64_t i = 0; i < n; i += rows) {
            if (!wanted[i / rows]) {
                continue;
            }
            fetch(values, v_, i + rows, n, v_type_.block_bytes * blocks_v);
            const Panel panel = panel_at(values, v_, i, n, v_type_.block_bytes * blocks_v, desk);
            v_type_.values[tile.width - 1](panel.start, panel.stride, blocks_v,
                                           &desk.scores[0][i], kPart, seen);
        }
    }

    void merge(const Tile & tile, Seen * into, const Seen * later) const {
        for (int32_t c = 0; c < tile.width; c++) {
            kernels_.merge(&into[c], &later[c], static_cast<int32_t>(v_->ne[0] / kBlock));
        }
    }

    void write(const Tile & tile, const Seen * seen) const {
        const int64_t n = v_->ne[0];
        for (int32_t c = 0; c < tile.width; c++) {
            const int64_t row =
                (tile.sequence * q_->ne[1] + tile.first + c) * q_->ne[2] + tile.head;
            auto *      out     = static_cast<float *>(op_->data) + row * n;
            const bool  nothing = seen[c].largest == -std::numeric_limits<float>::infinity();
            const float factor  = nothing ? 0.0f : 1.0f / seen[c].sum;
            for (int64_t i = 0; i < n; i++) {
                out[i] = nothing ? 0.0f : seen[c].values[i] * factor;
            }
        }
    }

    static void forget(Seen * seen) {
        for (int c = 0; c < kTile; c++) {
            seen[c].largest = -std::numeric_limits<float>::infinity();
            seen[c].sum     = 0.0f;
        }
    }

  private:
    struct Panel {
        const uint8_t * start;
        size_t          stride;
    };

    // A head's first row.
    const uint8_t * slice(const ggml_tensor * cache, const Tile & tile) const {
        const int64_t head = tile.head / (q_->ne[2] / cache->ne[2]);
        return static_cast<const uint8_t *>(cache->data) +
               static_cast<size_t>(head) * cache->nb[2] +
               static_cast<size_t>(tile.sequence) * cache->nb[3];
    }

    // The masks of every query, with positions past the end masked out; and which panels any looks
    // at.
    void read_masks(const Tile & tile, int64_t first, int64_t n, int64_t n_padded,
                    uint16_t (*masks)[kPart], bool * wanted) const {
        const int64_t rows = variant_.rows;
        std::fill_n(wanted, n_padded / rows, false);
        uint16_t nothing[kMostRows];
        std::fill_n(nothing, kMostRows, kInfinite);
        for (int32_t c = 0; c < tile.width; c++) {
            if (mask_ != nullptr) {
                const uint8_t * row =
                    static_cast<const uint8_t *>(mask_->data) +
                    static_cast<size_t>(tile.first + c) * mask_->nb[1] +
                    static_cast<size_t>(tile.head % mask_->ne[2]) * mask_->nb[2] +
                    static_cast<size_t>(tile.sequence % mask_->ne[3]) * mask_->nb[3];
                std::memcpy(masks[c], row + static_cast<size_t>(first) * sizeof(uint16_t),
                            static_cast<size_t>(n) * sizeof(uint16_t));
            } else {
                std::fill_n(masks[c], n, uint16_t{0});
            }
            std::fill(masks[c] + n, masks[c] + n_padded, kInfinite);
            for (int64_t i = 0; i < n_padded; i += rows) {
                wanted[i / rows] =
                    wanted[i / rows] ||
                    std::memcmp(masks[c] + i, nothing,
                                static_cast<size_t>(rows) * sizeof(uint16_t)) != 0;
            }
        }
    }

    // The panel at position i; the last one is copied if rows are missing.
    Panel panel_at(const uint8_t * start, const ggml_tensor * cache, int64_t i, int64_t n,
                   int32_t row_bytes, Desk & desk) const {
        const size_t stride = cache->nb[1];
        if (i + variant_.rows <= n) {
            return {start + static_cast<size_t>(i) * stride, stride};
        }
        const auto bytes = static_cast<size_t>(row_bytes);
        std::memset(desk.rows, 0, bytes * static_cast<size_t>(variant_.rows));
        for (int64_t row = i; row < n; row++) {
            std::memcpy(desk.rows + static_cast<size_t>(row - i) * bytes,
                        start + static_cast<size_t>(row) * stride, bytes);
        }
        return {desk.rows, bytes};
    }

    // Brings the panel at i nearer: its rows are too far apart for the hardware to foresee.
    void fetch(const uint8_t * start, const ggml_tensor * cache, int64_t i, int64_t n,
               int32_t row_bytes) const {
        const int64_t end = std::min<int64_t>(i + variant_.rows, n);
        for (int64_t row = i; row < end; row++) {
            const uint8_t * p = start + static_cast<size_t>(row) * cache->nb[1];
            for (int32_t at = 0; at < row_bytes; at += static_cast<int32_t>(kLine)) {
                __builtin_prefetch(p + at, 0, 2);
            }
        }
    }

    const Variant &          variant_;
    const AttentionKernels & kernels_;
    const ggml_tensor *      op_;
    const ggml_tensor *      q_;
    const ggml_tensor *      k_;
    const ggml_tensor *      v_;
    const ggml_tensor *      mask_;
    const CacheType &        k_type_;
    const CacheType &        v_type_;
    const Parameters         parameters_;
    const int64_t            n_tiles_;
};

bool is_cache(const Variant & variant, const ggml_tensor * cache) {
    const CacheType * type = cache_type_of(variant, cache->type);
    return type != nullptr && cache->ne[0] % kBlock == 0 && cache->ne[0] > 0 &&
           cache->ne[0] <= kMostHead && cache->ne[1] > 0 &&
           cache->nb[0] * static_cast<size_t>(kBlock) ==
               static_cast<size_t>(type->block_bytes) *
                   static_cast<size_t>(type->quantized ? kBlock : 1);
}

}  // namespace

bool takes_attention(const Variant & variant, const ggml_tensor * op) {
    const ggml_tensor * q    = op->src[0];
    const ggml_tensor * k    = op->src[1];
    const ggml_tensor * v    = op->src[2];
    const ggml_tensor * mask = op->src[3];
    return q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && op->type == GGML_TYPE_F32 &&
           ggml_is_contiguous(op) && is_cache(variant, k) && is_cache(variant, v) &&
           q->ne[0] == k->ne[0] && k->ne[1] == v->ne[1] && q->ne[2] % k->ne[2] == 0 &&
           q->ne[2] % v->ne[2] == 0 && q->ne[3] == k->ne[3] && q->ne[3] == v->ne[3] &&
           (mask == nullptr ||
            (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(uint16_t) &&
             mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1])) &&
           op->src[4] == nullptr && parameters_of(op).softcap == 0.0f;
}

bool compute_attention(const Variant & variant, const ggml_tensor * op, int n_threads,
                       Scratch & scratch) {
    const Attention attention(variant, op);
    const int64_t   n_units = attention.n_units(), n_parts = attention.n_parts();
    const bool      split   = n_parts > 1 && n_units < kUnitsEach * n_threads;
    const size_t    n_seen  = split ? static_cast<size_t>(n_units * n_parts * kTile) : 0;
    uint8_t *       memory  = nullptr;
    try {
        memory = scratch.get(static_cast<size_t>(n_threads) * sizeof(Desk) +
                             n_seen * sizeof(Seen));
    } catch (const std::bad_alloc &) {
        return false;
    }
    auto * desks = reinterpret_cast<Desk *>(memory);
    auto * parts = reinterpret_cast<Seen *>(memory + static_cast<size_t>(n_threads) * sizeof(Desk));
    Queue  units(split ? n_units * n_parts : n_units, n_threads, 1);
    Queue  merges(split ? n_units : 0, n_threads, 1);

#pragma omp parallel num_threads(n_threads)
    {
        int thread = 0, count = 1;
        team_place(thread, count);
        Desk &  desk  = desks[thread];
        int64_t first = 0, end = 0;
        while (units.claim(first, end)) {
            const Tile tile = attention.tile(split ? first % n_units : first);
            attention.read_queries(tile, desk);
            if (split) {
                const int64_t part = first / n_units;
                Seen * seen = parts + (first % n_units * n_parts + part) * kTile;
                attention.see_part(tile, part, desk, seen);
                continue;
            }
            Attention::forget(desk.seen);
            for (int64_t part = 0; part < n_parts; part++) {
                attention.see_part(tile, part, desk, desk.part);
                attention.merge(tile, desk.seen, desk.part);
            }
            attention.write(tile, desk.seen);
        }
        if (split) {
#pragma omp barrier
        }
        while (merges.claim(first, end)) {
            const Tile tile = attention.tile(first);
            Attention::forget(desk.seen);
            for (int64_t part = 0; part < n_parts; part++) {
                attention.merge(tile, desk.seen, parts + (first * n_parts + part) * kTile);
            }
            attention.write(tile, desk.seen);
        }
    }
    return true;
}

}  // namespace inferos::kernels
