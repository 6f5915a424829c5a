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
// A tile of twice the columns fills the first cache with half the depth.
constexpr int64_t kWideGroup = 2 * kGroup, kWideDepth = kDepth / 2;
constexpr int64_t kWideFrom = kWideTile;  // columns: with fewer, the tiles' rows are half empty

void quantize_piece(const ProductPlan & plan, int64_t piece) {
    const int64_t t     = piece / plan.parts_of_tile;
    const int64_t part  = piece % plan.parts_of_tile;
    const int32_t width = plan.tiles.width(t);
    const auto    start = [&](int64_t i) {
        const int64_t block = plan.n_blocks * i / plan.parts_of_tile;
        // laid out by groups of blocks
        return !plan.by_rows || i == plan.parts_of_tile ? block : block / kRowGroup * kRowGroup;
    };
    const int64_t first = start(part), end = start(part + 1);
    const auto    quantize = plan.by_rows                    ? plan.type.by_rows.quantize
                             : plan.type.quantize != nullptr ? plan.type.quantize
                                                             : plan.variant.quantize;
    for (int32_t c = 0; c < width; c++) {
        const auto column = static_cast<size_t>(plan.tiles.first(t) + c);
        quantize(plan.job.x + column * plan.job.x_stride + first * kBlock, end - first,
                 plan.type.offset, plan.type.split, width, c,
                 plan.tile(t) + static_cast<size_t>(first * width) * kColumnBytes);
    }
}

// The rows of the overlapping last panel that no other panel has.
void copy_tail(const ProductPlan & plan, int64_t panel, const float * from, int32_t width,
               float * out) {
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

    static Run claim(Pieces & panels) {
        Run run;
        run.is_any = panels.claim(run.first, run.end);
        return run;
    }
};

// A thread's first panel, while the columns are quantized.
void fetch_panel(const ProductPlan & plan, int64_t i) {
    const size_t n_bytes = static_cast<size_t>(plan.variant.rows) * plan.job.row_stride;
    for (size_t at = 0; at < n_bytes; at += kLine) {
        fetch_line(plan.panel(i) + at);
    }
}

void run_few(const ProductPlan & plan, Pieces & panels, const Member & me, Run run, float * tail) {
    const MulMat &  job    = plan.job;
    const int32_t   width  = plan.tiles.width(0);
    const FewKernel kernel = plan.by_rows ? plan.type.by_rows.kernel : plan.type.few[width - 1];
    const bool      dense  = plan.is_dense();
    while (run.is_any) {
        // known before the last panel of this run, so that it can be fetched
        const Run next = Run::claim(panels);
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
        panels.finish(me, run.end - run.first);
        run = next;
    }
}

// Neighbouring panels that are unpacked together, a part of their rows at a time.
struct Group {
    int64_t first, end;
};

// Fetches units from u on of a group's rows, while n_blocks are computed.
Fetch fetch_part(const ProductPlan & plan, Group group, int64_t u, int64_t n_blocks) {
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
void run_group(const ProductPlan & plan, Group group, Group next, uint8_t * unpacked,
               float * tails) {
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
            const auto unpack = plan.is_wide ? plan.type.unpack_signed : plan.type.unpack;
            unpack(plan.panel(i) + u * plan.type.unit_bytes, job.row_stride, n_units, part(i));
        }
        const int64_t n_blocks = n_units * per_unit;
        const int64_t n_panels = group.end - group.first;
        // what a last panel overlaps is written elsewhere
        const int64_t n_twos =
            plan.by_twos ? (n_panels - (plan.overlaps(group.end - 1) ? 1 : 0)) / 2 : 0;
        const int64_t n_steps = n_blocks * plan.tiles.count * (n_panels - n_twos);
        Fetch         fetch   = {};
        if (u + n_units < plan.n_units) {
            fetch = fetch_part(plan, group, u + n_units, n_steps);
        } else if (next.first < next.end) {
            fetch = fetch_part(plan, next, 0, n_steps);
        }
        for (int64_t t = 0; t < plan.tiles.count; t++) {
            const int32_t width = plan.tiles.width(t);
            const auto    kernel =
                plan.is_wide ? plan.type.many_wide[width - kTile] : plan.type.many[width - 1];
            const int64_t   column = plan.tiles.first(t);
            const uint8_t * tile =
                plan.tile(t) + static_cast<size_t>(u * per_unit * width) * kColumnBytes;
            const auto out_of = [&](int64_t i) {
                return job.out + plan.first_row(i) + static_cast<size_t>(column) * job.out_stride;
            };
            for (int64_t i = group.first; i < group.first + 2 * n_twos; i += 2) {
                plan.type.many_of_two[width - kLeastOfTwo](part(i), panel_bytes, n_blocks, tile,
                                                           out_of(i), job.out_stride, u == 0,
                                                           &fetch);
            }
            for (int64_t i = group.first + 2 * n_twos; i < group.end; i++) {
                const bool partial = plan.overlaps(i);
                float *    out     = partial ? tails + column * kMostRows : out_of(i);
                kernel(part(i), n_blocks, tile, out, partial ? kMostRows : job.out_stride, u == 0,
                       &fetch);
            }
        }
    }
    if (plan.overlaps(group.end - 1)) {
        copy_tail(plan, group.end - 1, tails, static_cast<int32_t>(job.n_columns),
                  job.out + plan.first_row(group.end - 1));
    }
}

void run_many(const ProductPlan & plan, Pieces & groups, const Member & me, uint8_t * unpacked,
              float * tails) {
    const auto claim = [&](Group & group) {
        int64_t    first = 0, end = 0;  // one at a time
        const bool got = groups.claim(first, end);
        group          = {first * plan.group, std::min(end * plan.group, plan.n_panels)};
        return got;
    };
    Group group = {}, next = {};
    for (bool more = claim(group); more; group = next) {
        more = claim(next);
        run_group(plan, group, more ? next : Group{}, unpacked, tails);
        groups.finish(me, 1);
    }
    if (plan.is_wide) {
        plan.variant.leave_tiles();
    }
}

// at most n_wanted, but at least one
int64_t panels_of_group(const WeightType & type, int64_t n_wanted, bool is_few, bool is_wide) {
    const int64_t n       = std::clamp<int64_t>(n_wanted, 1, is_wide ? kWideGroup : kGroup);
    const bool    by_twos = !is_wide && n > 1 && type.many_of_two[0] != nullptr;
    return is_few ? 1 : by_twos ? n / 2 * 2 : n;
}

}  // namespace

ProductPlan::ProductPlan(const Variant & its_variant, const WeightType & its_type,
                         const MulMat & its_job, int n_members)
    : variant(its_variant), type(its_type), job(its_job),
      is_wide(type.many_wide[0] != nullptr && job.n_columns >= kWideFrom),
      by_rows(job.n_columns == 1 && type.by_rows.kernel != nullptr &&
              job.n_per_row >= type.by_rows.least_units * int64_t{type.unit_values}),
      n_panels((job.n_rows + variant.rows - 1) / variant.rows),
      group(panels_of_group(its_type, n_panels / (kShare * n_members), is_few(), is_wide)),
      by_twos(!is_wide && group > 1 && type.many_of_two[0] != nullptr),
      tiles(job.n_columns, is_wide   ? kWideTile
                           : by_twos ? kMostOfTwo
                                     : kTile),
      n_blocks(job.n_per_row / kBlock), n_units(job.n_per_row / type.unit_values),
      part_units(std::min(n_units, (is_wide ? kWideDepth : kDepth) * kBlock / type.unit_values)),
      parts_of_tile(tiles.count >= 4 * n_members
                        ? 1
                        : std::clamp<int64_t>(n_blocks * tiles.width(0) / kPiece, 1,
                                              2 * static_cast<int64_t>(n_members))) {
    const auto lines = [](size_t n) { return (n + kLine - 1) / kLine * kLine; };
    column_bytes     = lines(static_cast<size_t>(job.n_columns * n_blocks) * kColumnBytes);
    tail_bytes       = lines(static_cast<size_t>(job.n_columns) * kMostRows * sizeof(float));
    const size_t unpacked =
        is_few() ? 0
                 : static_cast<size_t>(group * part_units * type.unit_values / kBlock) *
                       type.unpacked_bytes;
    private_bytes = tail_bytes + lines(unpacked);
}

Product::Product(const Variant & variant, const WeightType & type, const MulMat & job,
                 int n_members)
    : Product(ProductPlan(variant, type, job, n_members), n_members) {}

Product::Product(const ProductPlan & plan, int n_members)
    : Operation(plan.column_bytes + static_cast<size_t>(n_members) * plan.private_bytes),
      plan_(plan), quantizing_(plan.tiles.count * plan.parts_of_tile, n_members, 1),
      computing_((plan.n_panels + plan.group - 1) / plan.group, n_members,
                 plan.is_few() ? INT64_MAX : 1) {}

void Product::place(uint8_t * scratch) {
    plan_.columns      = scratch;
    plan_.private_part = scratch + plan_.column_bytes;
}

void Product::work(const Member & me) {
    Run own;
    if (plan_.is_few()) {
        own = Run::claim(computing_);
        if (own.is_any && plan_.is_dense()) {
            fetch_panel(plan_, own.first);
        }
    }
    quantizing_.run(me, [&](int64_t piece) { quantize_piece(plan_, piece); });
    if (me.team.is_called_off()) {
        return;
    }
    uint8_t * mine = plan_.private_part + static_cast<size_t>(me.index) * plan_.private_bytes;
    auto *    tail = reinterpret_cast<float *>(mine);
    if (plan_.is_few()) {
        run_few(plan_, computing_, me, own, tail);
    } else {
        run_many(plan_, computing_, me, mine + plan_.tail_bytes, tail);
    }
    computing_.wait(me);
}

bool mul_mat(const Variant & variant, const WeightType & type, const MulMat & job, int n_members,
             Scratch & scratch) {
    Product product(variant, type, job, n_members);
    return compute_alone(product, n_members, scratch);
}

}  // namespace inferos::kernels
