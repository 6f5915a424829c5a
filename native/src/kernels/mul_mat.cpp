// Few columns: a panel goes from memory through registers against all of them, and the next one is
// fetched meanwhile; memory bounds it. Many: some panels are unpacked into the cache, a part of
// the row at a time, and each tile of columns passes over them while it is in the first cache.
#include "mul_mat.h"

#include <algorithm>

namespace inferos::kernels {
namespace {

constexpr int64_t kGroup = 4;   // panels that are unpacked together, at most
constexpr int64_t kShare = 8;   // groups for each thread at least, so that all end together
constexpr int64_t kPiece = 64;  // blocks that are quantized at once, at least: half a microsecond
constexpr int64_t kDepth = 64;  // blocks of a row that are unpacked at once

// The columns of tile i when n columns are split evenly into tiles.
struct Tiles {
    int64_t n_columns;
    int64_t count;

    explicit Tiles(int64_t n) : n_columns(n), count((n + kTile - 1) / kTile) {}

    int64_t first(int64_t i) const { return i * n_columns / count; }
    int32_t width(int64_t i) const { return static_cast<int32_t>(first(i + 1) - first(i)); }
};

struct Plan {
    const Variant &    variant;
    const WeightType & type;
    const MulMat &     job;
    Tiles              tiles;
    int64_t            n_blocks;
    int64_t            n_units;
    int64_t            n_panels;
    uint8_t *          columns;       // all tiles, one after another
    uint8_t *          private_part;  // of each thread
    size_t             private_bytes;
    int64_t            part_units;  // that are unpacked at once
    int64_t            group;       // panels that are unpacked together

    const uint8_t * panel(int64_t i) const {
        return job.weights + static_cast<size_t>(first_row(i)) * job.row_stride;
    }
    // the last panel reaches back over rows of the one before, if the rows do not fill it
    int64_t first_row(int64_t i) const {
        return std::min<int64_t>(i * variant.rows, job.n_rows - variant.rows);
    }
    uint8_t * tile(int64_t i) const {
        return columns + static_cast<size_t>(tiles.first(i) * n_blocks) * kColumnBytes;
    }
    bool overlaps(int64_t i) const { return i * variant.rows != first_row(i); }
    // rows follow each other without gaps, so that a panel is one run of bytes
    bool is_dense() const {
        return job.row_stride == static_cast<size_t>(n_units * type.unit_bytes);
    }
};

// How the columns are shared out for quantizing: by tiles, since neighbouring columns of a tile lie in
// the same lines of the cache, and in parts of their rows if tiles are few.
struct Pieces {
    int64_t per_tile;
    int64_t count;

    Pieces(const Tiles & tiles, int64_t n_blocks, int n_threads)
        : per_tile(tiles.count >= 4 * n_threads
                       ? 1
                       : std::clamp<int64_t>(n_blocks * tiles.width(0) / kPiece, 1, 2 * n_threads)),
          count(tiles.count * per_tile) {}
};

void quantize_piece(const Plan & plan, const Pieces & pieces, int64_t piece) {
    const int64_t t     = piece / pieces.per_tile;
    const int64_t part  = piece % pieces.per_tile;
    const int64_t first = plan.n_blocks * part / pieces.per_tile;
    const int64_t end   = plan.n_blocks * (part + 1) / pieces.per_tile;
    const int32_t width = plan.tiles.width(t);
    for (int32_t c = 0; c < width; c++) {
        const auto column = static_cast<size_t>(plan.tiles.first(t) + c);
        plan.variant.quantize(plan.job.x + column * plan.job.x_stride + first * kBlock, end - first,
                              plan.type.offset, plan.type.split, width, c,
                              plan.tile(t) + static_cast<size_t>(first * width) * kColumnBytes);
    }
}

// The rows of the overlapping last panel that no other panel has.
void copy_tail(const Plan & plan, int64_t panel, const float * from, int32_t width, float * out) {
    const int64_t skip = panel * plan.variant.rows - plan.first_row(panel);
    for (int32_t c = 0; c < width; c++) {
        std::copy(from + c * kMostRows + skip, from + c * kMostRows + plan.variant.rows,
                  out + static_cast<size_t>(c) * plan.job.out_stride + skip);
    }
}

// Panels that a thread has claimed.
struct Run {
    int64_t first = 0, end = 0;
    bool    is_any = false;

    static Run claim(Queue & queue) {
        Run run;
        run.is_any = queue.claim(run.first, run.end);
        return run;
    }
};

// A thread's first panel, while the columns are quantized.
void fetch_panel(const Plan & plan, int64_t i) {
    const size_t n_bytes = static_cast<size_t>(plan.variant.rows) * plan.job.row_stride;
    for (size_t at = 0; at < n_bytes; at += kLine) {
        fetch_line(plan.panel(i) + at);
    }
}

void run_few(const Plan & plan, Queue & queue, Run run, float * tail) {
    const MulMat &  job    = plan.job;
    const int32_t   width  = plan.tiles.width(0);
    const FewKernel kernel = plan.type.few[width - 1];
    const bool      dense  = plan.is_dense();
    while (run.is_any) {
        // known before the last panel of this run, so that it can be fetched
        const Run next = Run::claim(queue);
        for (int64_t i = run.first; i < run.end; i++) {
            const int64_t following = i + 1 < run.end ? i + 1 : next.is_any ? next.first : -1;
            const auto *  ahead     = following >= 0 && dense ? plan.panel(following) : nullptr;
            float *       out       = job.out + plan.first_row(i);
            const bool    partial   = plan.overlaps(i);
            kernel(plan.panel(i), job.row_stride, plan.n_units, plan.columns, partial ? tail : out,
                   partial ? kMostRows : job.out_stride, ahead);
            if (partial) {
                copy_tail(plan, i, tail, width, out);
            }
        }
        run = next;
    }
}

// Neighbouring panels that are unpacked together, a part of their rows at a time.
struct Group {
    int64_t first, end;
};

// Fetches units from u on of a group's rows, while n_blocks are computed.
Fetch fetch_part(const Plan & plan, Group group, int64_t u, int64_t n_blocks) {
    const int64_t first   = plan.first_row(group.first);
    const int64_t n_rows  = plan.first_row(group.end - 1) + plan.variant.rows - first;
    const int64_t n_bytes = std::min(plan.part_units, plan.n_units - u) * plan.type.unit_bytes;
    // rows begin anywhere in a line
    const auto    n_lines = static_cast<int32_t>(n_bytes / static_cast<int64_t>(kLine) + 2);
    const int64_t total   = n_lines * n_rows;
    return {plan.panel(group.first) + u * plan.type.unit_bytes,
            plan.job.row_stride,
            n_lines,
            0,
            total,
            (total + n_blocks - 1) / n_blocks};
}

// A group against all tiles; `next` is fetched at the end, if it is any.
void run_group(const Plan & plan, Group group, Group next, uint8_t * unpacked, float * tails) {
    const MulMat & job      = plan.job;
    const int64_t  per_unit = plan.type.unit_values / kBlock;
    const size_t   panel_bytes =
        static_cast<size_t>(plan.part_units * per_unit) * plan.type.unpacked_bytes;
    for (int64_t u = 0; u < plan.n_units; u += plan.part_units) {
        const int64_t n_units = std::min(plan.part_units, plan.n_units - u);
        const auto    part    = [&](int64_t i) {
            return unpacked + static_cast<size_t>(i - group.first) * panel_bytes;
        };
        for (int64_t i = group.first; i < group.end; i++) {
            plan.type.unpack(plan.panel(i) + u * plan.type.unit_bytes, job.row_stride, n_units,
                             part(i));
        }
        const int64_t n_blocks = n_units * per_unit;
        const int64_t n_steps  = n_blocks * plan.tiles.count * (group.end - group.first);
        Fetch         fetch    = {};
        if (u + n_units < plan.n_units) {
            fetch = fetch_part(plan, group, u + n_units, n_steps);
        } else if (next.first < next.end) {
            fetch = fetch_part(plan, next, 0, n_steps);
        }
        for (int64_t t = 0; t < plan.tiles.count; t++) {
            const int32_t   width  = plan.tiles.width(t);
            const int64_t   column = plan.tiles.first(t);
            const uint8_t * tile =
                plan.tile(t) + static_cast<size_t>(u * per_unit * width) * kColumnBytes;
            for (int64_t i = group.first; i < group.end; i++) {
                const bool partial = plan.overlaps(i);
                float *    out     = partial ? tails + column * kMostRows
                                             : job.out + plan.first_row(i) +
                                                   static_cast<size_t>(column) * job.out_stride;
                plan.type.many[width - 1](part(i), n_blocks, tile, out,
                                          partial ? kMostRows : job.out_stride, u == 0, &fetch);
            }
        }
    }
    if (plan.overlaps(group.end - 1)) {
        copy_tail(plan, group.end - 1, tails, static_cast<int32_t>(job.n_columns),
                  job.out + plan.first_row(group.end - 1));
    }
}

void run_many(const Plan & plan, Queue & queue, uint8_t * unpacked, float * tails) {
    const auto claim = [&](Group & group) {
        int64_t    first = 0, end = 0;
        const bool got = queue.claim(first, end);
        group          = {first * plan.group, std::min(end * plan.group, plan.n_panels)};
        return got;
    };
    Group group = {}, next = {};
    for (bool more = claim(group); more; group = next) {
        more = claim(next);
        run_group(plan, group, more ? next : Group{}, unpacked, tails);
    }
}

}  // namespace

bool mul_mat(const Variant & variant, const WeightType & type, const MulMat & job, int n_threads,
             Scratch & scratch) {
    const Tiles   tiles(job.n_columns);
    const int64_t n_blocks   = job.n_per_row / kBlock;
    const int64_t n_units    = job.n_per_row / type.unit_values;
    const int64_t n_panels   = (job.n_rows + variant.rows - 1) / variant.rows;
    const bool    is_few     = tiles.count == 1;
    const int64_t part_units = std::min(n_units, kDepth * kBlock / type.unit_values);
    const int64_t group      = std::clamp<int64_t>(n_panels / (kShare * n_threads), 1, kGroup);
    const auto    lines      = [](size_t n) { return (n + kLine - 1) / kLine * kLine; };

    const size_t column_bytes = lines(static_cast<size_t>(job.n_columns * n_blocks) * kColumnBytes);
    const size_t tail_bytes = lines(static_cast<size_t>(job.n_columns) * kMostRows * sizeof(float));
    const size_t unpacked =
        is_few ? 0
               : static_cast<size_t>(group * part_units * type.unit_values / kBlock) *
                     type.unpacked_bytes;
    const size_t private_bytes = tail_bytes + lines(unpacked);
    uint8_t *    memory        = nullptr;
    try {
        memory = scratch.get(column_bytes + static_cast<size_t>(n_threads) * private_bytes);
    } catch (const std::bad_alloc &) {
        return false;
    }
    const Plan    plan     = {variant,       type,       job,
                              tiles,         n_blocks,   n_units,
                              n_panels,      memory,     memory + column_bytes,
                              private_bytes, part_units, group};
    const int64_t n_groups = (n_panels + group - 1) / group;
    Queue         queue(is_few ? n_panels : n_groups, n_threads, is_few ? INT64_MAX : 1);

    const Pieces pieces(tiles, n_blocks, n_threads);
    Phase        quantizing(pieces.count);

#pragma omp parallel num_threads(n_threads)
    {
        int thread = 0, count = 1;
        team_place(thread, count);
        Run own;
        if (is_few) {
            own = Run::claim(queue);
            if (own.is_any && plan.is_dense()) {
                fetch_panel(plan, own.first);
            }
        }
        quantizing.run([&](int64_t piece) { quantize_piece(plan, pieces, piece); });
        uint8_t * mine = plan.private_part + static_cast<size_t>(thread) * private_bytes;
        auto *    tail = reinterpret_cast<float *>(mine);
        if (is_few) {
            run_few(plan, queue, own, tail);
        } else {
            run_many(plan, queue, mine + tail_bytes, tail);
        }
    }
    return true;
}

}  // namespace inferos::kernels
