// A unit of work is one head of one sequence with a tile of up to 8 queries. It sees the positions
// in parts of 256, each from a fresh start, which are then merged in order. Where parts begin does
// not depend on the number of queries or threads, so neither does the result; and where units are
// fewer than threads need, the parts of one are computed by several.
#include "attention_op.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "attention_reading.h"
#include "ggml.h"

namespace inferos::kernels {
namespace {

constexpr int64_t kUnitsEach = 4;  // units per thread that even out between threads

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
    const float base =
        std::pow(2.0f, -(beyond ? max_bias / 2.0f : max_bias) / static_cast<float>(power));
    return std::pow(base, static_cast<float>(beyond ? 2 * (head - power) + 1 : head + 1));
}

// What a thread works with.
struct Desk {
    alignas(64) uint8_t tile[kTile * kMostHead * sizeof(float)];
    alignas(64) float scores[kTile][kPart];
    alignas(64) uint8_t rows[kMostRows * kMostHead * sizeof(uint16_t)];  // of a copied panel
    Seen    seen[kTile];
    Seen    part[kTile];
    Reading readings[2];  // that under way, and the next
};

// What a thread does next.
struct Step {
    int64_t unit, part;
    bool    is_any;
};

class Attention {
  public:
    Attention(const Variant & variant, const ggml_tensor * op, const Window & window)
        : variant_(variant), kernels_(variant.attention), op_(op), q_(op->src[0]), k_(op->src[1]),
          v_(op->src[2]), mask_(op->src[3]), k_type_(*cache_type_of(variant, k_->type)),
          v_type_(*cache_type_of(variant, v_->type)), parameters_(parameters_of(op)),
          window_(window), n_tiles_((q_->ne[1] + kTile - 1) / kTile) {}

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
        const int64_t n = q_->ne[0], n_padded = blocks_of(k_) * kBlock;
        for (int32_t c = 0; c < tile.width; c++) {
            const auto * query =
                reinterpret_cast<const float *>(static_cast<const uint8_t *>(q_->data) +
                                                static_cast<size_t>(tile.first + c) * q_->nb[1] +
                                                static_cast<size_t>(tile.head) * q_->nb[2] +
                                                static_cast<size_t>(tile.sequence) * q_->nb[3]);
            if (k_type_.quantized) {
                variant_.quantize(query, n / kBlock, k_type_.offset, false, tile.width, c,
                                  desk.tile);
            } else {
                auto * read = reinterpret_cast<float *>(desk.tile) + c * n_padded;
                std::fill(std::copy_n(query, n, read), read + n_padded, 0.0f);
            }
        }
    }

    // Which rows a step reads.
    void look_up(const Step & step, Reading & reading) const {
        const int64_t first = step.part * kPart;
        reading.tile        = tile(step.unit);
        reading.rows        = variant_.rows;
        reading.keys        = Rows(k_, k_type_.block_bytes, reading.tile, q_->ne[2], first);
        reading.values      = Rows(v_, v_type_.block_bytes, reading.tile, q_->ne[2], first);
        reading.read_masks(mask_, window_, first);
    }

    // What the tile's queries see of a part. Meanwhile what comes a little later is fetched, of this
    // part or the next: a head's rows are too far apart for the hardware to foresee.
    void see_part(const Reading & reading, const Reading * next, Desk & desk, Seen * seen) const {
        const Tile &  tile  = reading.tile;
        const int64_t ahead = reading.ahead();
        for (int64_t i = 0; i < reading.n_panels; i++) {
            const int64_t n_times = k_type_.quantized ? blocks_of(k_) : variant_.rows;
            Fetch         fetch   = reading.coming(i + ahead, next, n_times);
            const int64_t row     = reading.panels[i];
            const Panel   panel   = panel_at(reading.keys, row, desk);
            k_type_.scores[tile.width - 1](panel.start, panel.stride, blocks_of(k_), desk.tile,
                                           &desk.scores[0][row], kPart, fetch);
        }
        const float slope =
            window_.is_used ? 0.0f : alibi_slope(parameters_.max_bias, tile.head, q_->ne[2]);
        for (int32_t c = 0; c < tile.width; c++) {
            kernels_.softmax(desk.scores[c], reading.n_positions, parameters_.scale,
                             reading.masks[c], slope, &seen[c]);
            std::fill_n(seen[c].values, blocks_of(v_) * kBlock, 0.0f);
        }
        for (int64_t i = 0; i < reading.n_panels; i++) {
            Fetch         fetch = reading.coming(reading.n_panels + i + ahead, next, blocks_of(v_));
            const int64_t row   = reading.panels[i];
            const Panel   panel = panel_at(reading.values, row, desk);
            v_type_.values[tile.width - 1](panel.start, panel.stride,
                                           static_cast<int32_t>(blocks_of(v_)),
                                           &desk.scores[0][row], kPart, seen, fetch);
        }
    }

    void merge(const Tile & tile, Seen * into, const Seen * later) const {
        for (int32_t c = 0; c < tile.width; c++) {
            kernels_.merge(&into[c], &later[c], static_cast<int32_t>(blocks_of(v_)));
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

    // The panel at a row; copied if rows are missing, as from the last one, or parts of blocks.
    Panel panel_at(const Rows & rows, int64_t row, Desk & desk) const {
        const int64_t end = std::min(row + variant_.rows, rows.n);
        if (row + variant_.rows == end && rows.n_bytes == rows.n_padded_bytes) {
            return {rows.at(row), rows.stride};
        }
        const auto stride = static_cast<size_t>(rows.n_padded_bytes);
        std::memset(desk.rows, 0, stride * static_cast<size_t>(variant_.rows));
        for (int64_t i = row; i < end; i++) {
            std::memcpy(desk.rows + static_cast<size_t>(i - row) * stride, rows.at(i),
                        static_cast<size_t>(rows.n_bytes));
        }
        return {desk.rows, stride};
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
    const Window             window_;
    const int64_t            n_tiles_;
};

bool is_cache(const Variant & variant, const ggml_tensor * cache) {
    const CacheType * type = cache_type_of(variant, cache->type);
    return type != nullptr && (!type->quantized || cache->ne[0] % kBlock == 0) &&
           cache->ne[0] > 0 && cache->ne[0] <= kMostHead && cache->ne[1] > 0 &&
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
           (mask == nullptr || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(uint16_t) &&
                                mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1])) &&
           op->src[4] == nullptr && parameters_of(op).softcap == 0.0f;
}

namespace {

class AttentionOperation final : public Operation {
  public:
    AttentionOperation(const Variant & variant, const ggml_tensor * op, const Window & window,
                       int n_members)
        : AttentionOperation(Attention(variant, op, window), n_members) {}

    void place(uint8_t * scratch) override {
        desks_ = reinterpret_cast<Desk *>(scratch);
        parts_ = reinterpret_cast<Seen *>(scratch + static_cast<size_t>(n_members_) * sizeof(Desk));
    }

    void work(const Member & me) override {
        see_units(me, desks_[me.index]);
        units_.wait(me);
        if (split_ && !me.team.is_called_off()) {
            merges_.run(me, [&](int64_t unit) { merge_parts(unit, desks_[me.index]); });
        }
    }

  private:
    AttentionOperation(const Attention & attention, int n_members)
        : AttentionOperation(attention, n_members,
                             attention.n_parts() > 1 &&
                                 attention.n_units() < kUnitsEach * n_members) {}
    AttentionOperation(const Attention & attention, int n_members, bool split)
        : Operation(
              static_cast<size_t>(n_members) * sizeof(Desk) +
              (split ? static_cast<size_t>(attention.n_units() * attention.n_parts() * kTile) : 0) *
                  sizeof(Seen)),
          attention_(attention), n_members_(n_members), n_units_(attention.n_units()),
          n_parts_(attention.n_parts()), split_(split),
          units_(split ? n_units_ * n_parts_ : n_units_, n_members, 1),
          merges_(split ? n_units_ : 0, n_members, 1) {}

    // a unit's parts in turn, or parts of any unit
    Step following(const Step & step) {
        if (!split_ && step.is_any && step.part + 1 < n_parts_) {
            return {step.unit, step.part + 1, true};
        }
        int64_t    first = 0, end = 0;
        const bool got = units_.claim(first, end);
        return split_ ? Step{first % n_units_, first / n_units_, got} : Step{first, 0, got};
    }

    void see_units(const Member & me, Desk & desk) {
        Reading *reading = &desk.readings[0], *coming = &desk.readings[1];
        Step     step = following({});
        if (step.is_any) {
            attention_.look_up(step, *reading);
            for (int64_t i = 0; i < reading->ahead(); i++) {
                reading->coming(i, nullptr, 1).run(1);
            }
        }
        while (step.is_any) {
            const Step next = following(step);
            if (next.is_any) {
                attention_.look_up(next, *coming);
            }
            see(step, *reading, next.is_any ? coming : nullptr, desk);
            if (split_ || step.part + 1 == n_parts_) {
                units_.finish(me, 1);
            }
            std::swap(reading, coming);
            step = next;
        }
    }

    void see(const Step & step, const Reading & reading, const Reading * next, Desk & desk) {
        if (split_ || step.part == 0) {
            attention_.read_queries(reading.tile, desk);
            Attention::forget(desk.seen);
        }
        if (split_) {
            attention_.see_part(reading, next, desk,
                                parts_ + (step.unit * n_parts_ + step.part) * kTile);
            return;
        }
        attention_.see_part(reading, next, desk, desk.part);
        attention_.merge(reading.tile, desk.seen, desk.part);
        if (step.part + 1 == n_parts_) {
            attention_.write(reading.tile, desk.seen);
        }
    }

    void merge_parts(int64_t unit, Desk & desk) {
        const Tile tile = attention_.tile(unit);
        Attention::forget(desk.seen);
        for (int64_t part = 0; part < n_parts_; part++) {
            attention_.merge(tile, desk.seen, parts_ + (unit * n_parts_ + part) * kTile);
        }
        attention_.write(tile, desk.seen);
    }

    const Attention attention_;
    const int       n_members_;
    const int64_t   n_units_, n_parts_;
    const bool      split_;
    Desk *          desks_ = nullptr;
    Seen *          parts_ = nullptr;
    Pieces          units_;
    Pieces          merges_;
};

}  // namespace

bool find_window(const ggml_tensor * op, const std::vector<int32_t> & windows, Window & window) {
    if (windows.empty()) {
        return true;
    }
    const ggml_tensor * keys   = op->src[1];
    const ggml_tensor * cache  = keys->view_src != nullptr ? keys->view_src : keys;
    const char *        number = std::strrchr(cache->name, 'l');
    if (number == nullptr || std::isdigit(static_cast<unsigned char>(number[1])) == 0) {
        return false;
    }
    const auto layer = static_cast<size_t>(std::atoi(number + 1));
    if (layer >= windows.size()) {
        return false;
    }
    window = Window::of(windows[layer]);
    return true;
}

Operation * make_attention(const Variant & variant, const ggml_tensor * op, const Window & window,
                           int n_members, Arena & arena) {
    return arena.make<AttentionOperation>(variant, op, window, n_members);
}

bool compute_attention(const Variant & variant, const ggml_tensor * op, const Window & window,
                       int n_members, Scratch & scratch) {
    AttentionOperation attention(variant, op, window, n_members);
    return compute_alone(attention, n_members, scratch);
}

}  // namespace inferos::kernels
