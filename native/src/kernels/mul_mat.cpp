// Few columns: a panel goes from memory through registers against all of them, and the next one is
// fetched meanwhile; memory bounds it. Many: some panels are unpacked into the cache, a part of
// the row at a time, and each tile of columns passes over them while it is in the first cache.
#include "mul_mat.h"

#include <algorithm>

namespace inferos::kernels {
namespace {

constexpr int64_t kGroup = 4;   // panels that are unpacked together
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
    uint8_t *          columns;      // all tiles, one after another
    uint8_t *          private_part; // of each thread
    size_t             private_bytes;
    int64_t            part_units;   // that are unpacked at once

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
};

void quantize_share(const Plan & plan, int thread, int n_threads) {
    // whole columns if there are enough of them, else parts of each
    const int64_t parts = plan.job.n_columns >= 4 * n_threads ? 1 : n_threads;
    for (int64_t t = 0; t < plan.tiles.count; t++) {
        const int32_t width = plan.tiles.width(t);
        for (int32_t c = 0; c < width; c++) {
            const int64_t column = plan.tiles.first(t) + c;
            for (int64_t part = 0; part < parts; part++) {
                if ((column * parts + part) % n_threads != thread) {
                    continue;
                }
                const int64_t first = plan.n_blocks * part / parts;
                const int64_t end   = plan.n_blocks * (part + 1) / parts;
                plan.variant.quantize(
                    plan.job.x + static_cast<size_t>(column) * plan.job.x_stride + first * kBlock,
                    end - first, plan.type.offset, plan.type.split, width, c,
                    plan.tile(t) + static_cast<size_t>(first * width) * kColumnBytes);
            }
        }
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

void run_few(const Plan & plan, Queue & queue, float * tail) {
    const MulMat &  job     = plan.job;
    const int32_t   width   = plan.tiles.width(0);
    const FewKernel kernel  = plan.type.few[width - 1];
    const size_t    n_ahead = static_cast<size_t>(plan.variant.rows * plan.type.unit_bytes);
    const bool      dense   = job.row_stride ==
                       static_cast<size_t>(plan.n_units) * static_cast<size_t>(plan.type.unit_bytes);
    int64_t first = 0, end = 0, next = 0, next_end = 0;
    bool    more = queue.claim(first, end);
    while (more) {
        // known before the last panel of this run, so that it can be fetched
        more = queue.claim(next, next_end);
        for (int64_t i = first; i < end; i++) {
            const int64_t following = i + 1 < end ? i + 1 : more ? next : -1;
            const Ahead   ahead     = following >= 0 && dense
                                          ? Ahead{plan.panel(following), n_ahead}
                                          : Ahead{job.weights, 0};
            float *       out       = job.out + plan.first_row(i);
            const bool    partial   = plan.overlaps(i);
            kernel(plan.panel(i), job.row_stride, plan.n_units, plan.columns,
                   partial ? tail : out, partial ? kMostRows : job.out_stride, ahead);
            if (partial) {
                copy_tail(plan, i, tail, width, out);
            }
        }
        first = next;
        end   = next_end;
    }
}

// Panels [first, end) against all tiles, from start to end of the rows.
void run_group(const Plan & plan, int64_t first, int64_t end, uint8_t * unpacked, float * tails) {
    const MulMat & job         = plan.job;
    const int64_t  per_unit    = plan.type.unit_values / kBlock;
    const size_t   panel_bytes = static_cast<size_t>(plan.part_units * per_unit) *
                               plan.type.unpacked_bytes;
    for (int64_t u = 0; u < plan.n_units; u += plan.part_units) {
        const int64_t n_units = std::min(plan.part_units, plan.n_units - u);
        for (int64_t i = first; i < end; i++) {
            plan.type.unpack(plan.panel(i) + u * plan.type.unit_bytes, job.row_stride, n_units,
                             unpacked + static_cast<size_t>(i - first) * panel_bytes);
        }
        for (int64_t t = 0; t < plan.tiles.count; t++) {
            const int32_t   width = plan.tiles.width(t);
            const int64_t   column = plan.tiles.first(t);
            const uint8_t * tile =
                plan.tile(t) + static_cast<size_t>(u * per_unit * width) * kColumnBytes;
            for (int64_t i = first; i < end; i++) {
                const bool partial = plan.overlaps(i);
                float *    out     = partial ? tails + column * kMostRows
                                             : job.out + plan.first_row(i) +
                                             static_cast<size_t>(column) * job.out_stride;
                plan.type.many[width - 1](unpacked + static_cast<size_t>(i - first) * panel_bytes,
                                          n_units * per_unit, tile, out,
                                          partial ? kMostRows : job.out_stride, u == 0);
            }
        }
    }
    if (plan.overlaps(end - 1)) {
        copy_tail(plan, end - 1, tails, static_cast<int32_t>(job.n_columns),
                  job.out + plan.first_row(end - 1));
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
    const auto    lines      = [](size_t n) { return (n + kLine - 1) / kLine * kLine; };

    const size_t column_bytes = lines(static_cast<size_t>(job.n_columns * n_blocks) * kColumnBytes);
    const size_t tail_bytes   = lines(static_cast<size_t>(job.n_columns) * kMostRows * sizeof(float));
    const size_t unpacked     = is_few ? 0
                                       : static_cast<size_t>(kGroup * part_units * type.unit_values /
                                                     kBlock) * type.unpacked_bytes;
    const size_t private_bytes = tail_bytes + lines(unpacked);
    uint8_t *    memory        = nullptr;
    try {
        memory = scratch.get(column_bytes + static_cast<size_t>(n_threads) * private_bytes);
    } catch (const std::bad_alloc &) {
        return false;
    }
    const Plan plan = {variant, type,     job,    tiles, n_blocks, n_units, n_panels,
                       memory,  memory + column_bytes, private_bytes, part_units};
    const int64_t n_groups = (n_panels + kGroup - 1) / kGroup;
    Queue         queue(is_few ? n_panels : n_groups, n_threads, is_few ? INT64_MAX : 1);

#pragma omp parallel num_threads(n_threads)
    {
        int thread = 0, count = 1;
        team_place(thread, count);
        quantize_share(plan, thread, count);
#pragma omp barrier
        uint8_t * mine = plan.private_part + static_cast<size_t>(thread) * private_bytes;
        auto *    tail = reinterpret_cast<float *>(mine);
        if (is_few) {
            run_few(plan, queue, tail);
        } else {
            int64_t first = 0, end = 0;
            while (queue.claim(first, end)) {
                run_group(plan, first * kGroup, std::min(end * kGroup, n_panels),
                          mine + tail_bytes, tail);
            }
        }
    }
    return true;
}

}  // namespace inferos::kernels
