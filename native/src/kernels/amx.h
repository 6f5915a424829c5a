// Products of wide tiles of columns by AMX: a panel's block is a matrix of 8 rows of 64 bytes as it
// lies unpacked, a tile's quants are one of `width` rows of 32 bytes, and their product is the dot
// products of every row and column, exact integers. Scales follow in float32 in the order of panel.h:
// equal to it in every bit.
//
// Layer is what executes the instructions on the calling thread's eight matrices:
//     void load_shapes(const Shapes &), store_shapes(Shapes &)
//     template <int to> void zero(), load(from, stride), store(to, stride)
//     template <int sum, int a, int b> void add_products()    of signed bytes, by rows of a
#pragma once

#include "cpu_features.h"
#include "isa_avx512.h"
#include "weights.h"

namespace {

using inferos::kernels::kWideTile;
using inferos::kernels::ManyKernel;
using inferos::kernels::UnpackKernel;
using inferos::kernels::Variant;
using inferos::kernels::variant_avx512vbmi;
using inferos::kernels::variant_avx512vnni;

// The operand of ldtilecfg (Intel's manual, volume 1, 18.3): one line.
struct alignas(64) Shapes {
    uint8_t  palette       = 0;  // 1: eight matrices of up to 16 rows of 64 bytes; 0: none
    uint8_t  start_row     = 0;
    uint8_t  reserved[14]  = {};
    uint16_t row_bytes[8]  = {};
    uint16_t unused[8]     = {};
    uint8_t  rows[8]       = {};
    uint8_t  unused_too[8] = {};
};
static_assert(sizeof(Shapes) == 64);

// Dot products of a block, a line of 16 rows' for every column; of its second half apart, if split.
struct alignas(64) Dots {
    uint8_t bytes[2][kWideTile * kLine];
};

// What this thread's matrices are shaped for, and were before: llama.cpp shapes those of its threads
// once and for all.
template <class Layer> struct InUse {
    Shapes before;
    int    width    = 0;  // of the tiles of columns; 0: not ours
    bool   is_split = false;
};
template <class Layer> thread_local InUse<Layer> in_use;

// Sums are the matrices 0 to 3, columns 4 and 5, weights 6 and 7. Two of each, since the next block's
// product is under way while one is scaled; split blocks have two products, with a pair for each half.
template <class Layer> [[gnu::noinline]] void shape_for(int width, bool is_split) {
    InUse<Layer> & now = in_use<Layer>;
    if (now.width == width && now.is_split == is_split) {
        return;
    }
    if (now.width == 0) {
        Layer::store_shapes(now.before);
    }
    const int bytes = is_split ? kBlock / 2 : kBlock;  // of a column
    Shapes    shapes;
    shapes.palette = 1;
    for (int i = 0; i < 8; i++) {
        shapes.rows[i]      = static_cast<uint8_t>(i < 6 ? width : bytes / 4);
        shapes.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? bytes : 64);
    }
    Layer::load_shapes(shapes);
    now.width    = width;
    now.is_split = is_split;
}

// As they were: without any, the system has no matrices to keep for this thread.
template <class Layer> void leave_tiles() {
    InUse<Layer> & now = in_use<Layer>;
    if (now.width != 0) {
        Layer::load_shapes(now.before);
        now.width = 0;
    }
}

// The instructions of a block's dot products, in matrices of their own for every other block.
template <class Isa, class Layer, bool is_split, int odd> struct BlockProduct {
    static constexpr int first = is_split ? 2 * odd : odd, operands = is_split ? 0 : odd;

    INLINE void begin(const Unpacked<Isa> & w, const uint8_t * block) {
        multiply<first, operands>(w.quants, block);
        if constexpr (is_split) {
            multiply<first + 1, 1>(w.quants + 4, block + kBlock / 2);
        }
    }
    INLINE void end(Dots & dots) {
        Layer::template store<first>(dots.bytes[0], kLine);
        if constexpr (is_split) {
            Layer::template store<first + 1>(dots.bytes[1], kLine);
        }
    }

  private:
    template <int sum, int pair>
    INLINE void multiply(const typename Isa::Int * quants, const uint8_t * columns) {
        Layer::template load<4 + pair>(columns, kBlock);
        Layer::template load<6 + pair>(quants, kLine);
        Layer::template zero<sum>();
        Layer::template add_products<sum, 4 + pair, 6 + pair>();
    }
};

// As the end of add_block() in panel.h.
template <class Isa, Other other, int C>
INLINE void add_scaled(const UnpackedAs<Isa, other> & w, const uint8_t * block, const Dots & dots,
                       typename Isa::Float * sums) {
    const uint8_t * scales  = block + kBlock * C;
    const uint8_t * weighed = scales + 3 * 4 * C;
#pragma GCC unroll 16  // or the compiler keeps the sums in memory
    for (int c = 0; c < C; c++) {
        const auto scale = Isa::broadcast_float(scales + 4 * c);
        const auto dot   = Isa::to_float(Isa::load(dots.bytes[0] + c * kLine));
        sums[c]          = Isa::fma(dot, Isa::mul(w.scale, scale), sums[c]);
        if constexpr (other == Other::split) {
            const auto second = Isa::to_float(Isa::load(dots.bytes[1] + c * kLine));
            sums[c]           = Isa::fma(second, Isa::mul(w.other, scale), sums[c]);
        }
        if constexpr (other == Other::minimum) {
            sums[c] = Isa::fnma(w.other, Isa::broadcast_float(weighed + 4 * c), sums[c]);
        }
        if constexpr (other == Other::minima) {
            sums[c] = Isa::fnma(w.other, Isa::broadcast_float(weighed + 4 * c), sums[c]);
            sums[c] = Isa::fnma(w.second, Isa::broadcast_float(weighed - 4 * C + 4 * c), sums[c]);
        }
    }
}

template <class Isa, class Layer, Other other, int C>
void many_wide(const uint8_t * unpacked, int64_t n_blocks, const uint8_t * tile, float * out,
               size_t out_stride, bool first, Fetch * fetch) {
    shape_for<Layer>(C, other == Other::split);
    using Even               = BlockProduct<Isa, Layer, other == Other::split, 0>;
    using Odd                = BlockProduct<Isa, Layer, other == Other::split, 1>;
    constexpr size_t n_block = C * kColumnBytes;
    const auto *     w       = reinterpret_cast<const UnpackedAs<Isa, other> *>(unpacked);

    Dots                dots, others;
    typename Isa::Float sums[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
        sums[c] = first ? Isa::zero() : Isa::load_floats(out + static_cast<size_t>(c) * out_stride);
    }
    Fetch next = *fetch;
    // the next block is multiplied while one is scaled
    Even::begin(*w, tile);
    Even::end(dots);
    for (; n_blocks > 2; n_blocks -= 2, w += 2, tile += 2 * n_block) {
        next.run(2);
        Odd::begin(w[1], tile + n_block);
        add_scaled<Isa, other, C>(w[0], tile, dots, sums);
        Odd::end(others);
        Even::begin(w[2], tile + 2 * n_block);
        add_scaled<Isa, other, C>(w[1], tile + n_block, others, sums);
        Even::end(dots);
    }
    next.run(2);
    if (n_blocks == 2) {
        Odd::begin(w[1], tile + n_block);
        Odd::end(others);
    }
    add_scaled<Isa, other, C>(w[0], tile, dots, sums);
    if (n_blocks == 2) {
        add_scaled<Isa, other, C>(w[1], tile + n_block, others, sums);
    }
    *fetch = next;
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
        Isa::store_floats(out + static_cast<size_t>(c) * out_stride, sums[c]);
    }
}

// A type's kernels with those of wide tiles.
template <class Isa, class Layer, class W> WeightType widened(const Variant & narrow) {
    static_assert(kTile == 8 && kWideTile == 16 && Isa::lanes == 16);
    constexpr Other  other  = W::other;
    const ManyKernel wide[] = {
        many_wide<Isa, Layer, other, 8>,  many_wide<Isa, Layer, other, 9>,
        many_wide<Isa, Layer, other, 10>, many_wide<Isa, Layer, other, 11>,
        many_wide<Isa, Layer, other, 12>, many_wide<Isa, Layer, other, 13>,
        many_wide<Isa, Layer, other, 14>, many_wide<Isa, Layer, other, 15>,
        many_wide<Isa, Layer, other, 16>,
    };
    WeightType type = *find_type(narrow, W::type);
    if (type.unpack_signed == nullptr) {
        type.unpack_signed = unpack_panel<Isa, W, true>;
    }
    __builtin_memcpy(type.many_wide, wide, sizeof(wide));
    return type;
}

template <class Isa, class Layer, class List> struct WideTable;
template <class Isa, class Layer, class... Types> struct WideTable<Isa, Layer, TypeList<Types...>> {
    WeightType types[sizeof...(Types)];

    explicit WideTable(const Variant & narrow) : types{widened<Isa, Layer, Types>(narrow)...} {}
};

constexpr int64_t kProbeShare = 16;  // rounds for which a probe multiplies once

// Products of bytes alone, as `multiply` in variant.h.
template <class Layer> int32_t multiply_tiles(int64_t n_rounds) {
    alignas(64) uint8_t bytes[kWideTile * kLine];
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = static_cast<uint8_t>((n_rounds + static_cast<int64_t>(i)) & 0x0f);
    }
    shape_for<Layer>(kWideTile, false);
    Layer::template load<4>(bytes, kBlock);
    Layer::template load<5>(bytes, kBlock);
    Layer::template load<6>(bytes, kLine);
    Layer::template load<7>(bytes, kLine);
    Layer::template zero<0>();
    Layer::template zero<1>();
    Layer::template zero<2>();
    Layer::template zero<3>();
    for (int64_t i = 0; i < n_rounds / kProbeShare; i++) {
        Layer::template add_products<0, 4, 6>();
        Layer::template add_products<1, 5, 7>();
        Layer::template add_products<2, 4, 7>();
        Layer::template add_products<3, 5, 6>();
    }
    Layer::template store<0>(bytes, kLine);
    leave_tiles<Layer>();
    int32_t first;
    __builtin_memcpy(&first, bytes, sizeof(first));
    return first;
}

// Blocks against a full tile, scales included, as `multiply_blocks` in variant.h.
template <class Isa, class Layer> int32_t multiply_wide_blocks(int64_t n_rounds) {
    constexpr int             n_blocks                                  = 32;
    alignas(64) uint8_t       tile[n_blocks * kWideTile * kColumnBytes] = {};
    alignas(64) Unpacked<Isa> w[n_blocks];
    alignas(64) float         out[kWideTile * Isa::lanes];
    for (int i = 0; i < n_blocks; i++) {
        uint8_t * block = tile + i * kWideTile * kColumnBytes;
        for (int j = 0; j < kWideTile * kBlock; j++) {
            block[j] = static_cast<uint8_t>((n_rounds + j) & 0x0f);
        }
        for (int c = 0; c < kWideTile; c++) {
            const float scale = 0.5f;
            __builtin_memcpy(block + kBlock * kWideTile + 4 * c, &scale, sizeof(scale));
        }
        for (auto & quants : w[i].quants) {
            quants = Isa::and_bytes(Isa::load(tile), 0x0f);
        }
        w[i].scale = w[i].other = Isa::set(1.0f);
    }
    const int64_t n = n_rounds / kProbeShare / n_blocks;
    for (int64_t i = 0; i < n; i++) {
        Fetch none = {};
        many_wide<Isa, Layer, Other::none, kWideTile>(
            reinterpret_cast<const uint8_t *>(w), n_blocks, tile, out, Isa::lanes, i == 0, &none);
    }
    leave_tiles<Layer>();
    return n > 0 ? static_cast<int32_t>(out[0]) : 0;
}

// The variant for AVX-512 with AMX for products of many columns.
template <class Layer> const Variant * amx_variant(const char * name) {
    static const Variant & narrow =
        inferos::cpu_features().avx512vbmi ? *variant_avx512vbmi() : *variant_avx512vnni();
    static const WideTable<Avx512, Layer, WeightTypes> wide(narrow);
    static const Variant                               variant = [&] {
        Variant made     = narrow;
        made.name        = name;
        made.types       = wide.types;
        made.leave_tiles = leave_tiles<Layer>;
        made.multiply    = {multiply_tiles<Layer>, 4 * 16 * 16 * kBlock / kProbeShare};
        made.blocks      = {multiply_wide_blocks<Avx512, Layer>, 16 * 16 * kBlock / kProbeShare};
        return made;
    }();
    return &variant;
}

}  // namespace
