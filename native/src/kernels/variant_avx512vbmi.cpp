// AVX-512 VNNI, and tables of bytes in registers (VBMI) for the types whose quants are looked up.
#include <algorithm>
#include <iterator>

#include "isa_avx512.h"
#include "weights.h"

namespace {

using inferos::kernels::UnpackKernel;

// Seven signs and the eighth, by the seven.
struct EvenSigns {
    alignas(64) uint8_t bytes[128];

    constexpr EvenSigns() : bytes() {
        for (unsigned i = 0; i < 128; i++) {
            bytes[i] = static_cast<uint8_t>(i | (__builtin_popcount(i) & 1u) << 7);
        }
    }
};
constexpr EvenSigns kEvenSigns;

struct Avx512Vbmi : Avx512 {
    static constexpr bool has_byte_tables = true;

    // As in unpack_grid.h.
    template <int first, int step> INLINE Int spread(Int v) {
        return _mm512_multishift_epi64_epi8(begins_at(first, step), v);
    }
    INLINE Int eight_signs(Int sevens) {
        return _mm512_permutex2var_epi8(load(kEvenSigns.bytes), sevens,
                                        load(kEvenSigns.bytes + 64));
    }
    // Their values in the order of TransposedBlock.
    template <int half, int n, int offset>
    INLINE void look_up_fours(const Grid<n, 4, offset> & grid, Int places, Int ninths, Int signs,
                              Int * found) {
        const __mmask64 bits[] = {_mm512_movepi8_mask(places), bits_at<half>(ninths)};
        const Int       first  = look_up<n>(grid.halves[0], places, bits);
        const Int       last   = look_up<n>(grid.halves[1], places, bits);
        found[0]               = _mm512_permutexvar_epi8(first, load(grid.sizes[0]));
        found[1]               = _mm512_permutexvar_epi8(first, load(grid.sizes[1]));
        found[2]               = _mm512_permutexvar_epi8(last, load(grid.sizes[0]));
        found[3]               = _mm512_permutexvar_epi8(last, load(grid.sizes[1]));
        set_signs<half>(found, signs, 2 * offset);
    }
    template <int n, int offset>
    INLINE void look_up_eights(const Grid<n, 8, offset> & grid, Int low, Int high, Int signs,
                               Int * found) {
        const __mmask64 bits[] = {_mm512_movepi8_mask(low),
                                  _mm512_test_epi8_mask(high, _mm512_set1_epi8(1)),
                                  _mm512_test_epi8_mask(high, _mm512_set1_epi8(2))};
        const Int       first  = look_up<n>(grid.halves[0], low, bits);
        const Int       last   = look_up<n>(grid.halves[1], low, bits);
        look_up_digits(grid.sizes, bytes_of(first, last, {0, 64, 1, 65}), found);
        look_up_digits(grid.sizes, bytes_of(first, last, {2, 66, 3, 67}), found + 4);
        set_signs<0>(found, signs, 2 * offset);
        set_signs<1>(found + 4, signs, 2 * offset);
    }
    // bytes 0 and 2 (1 and 3) of a lane of a, then of b
    INLINE Int even_bytes(Int a, Int b) { return bytes_of(a, b, {0, 2, 64, 66}); }
    INLINE Int odd_bytes(Int a, Int b) { return bytes_of(a, b, {1, 3, 65, 67}); }

  private:
    // The bits of two lanes at which their bytes begin, for multishift.
    INLINE Int begins_at(int first, int step) {
        const auto at = [=](int lane) {
            const int begin = 32 * lane + first;
            return begin | (begin + step) << 8 | (begin + 2 * step) << 16 |
                   (begin + 3 * step) << 24;
        };
        return _mm512_set4_epi32(at(1), at(0), at(1), at(0));
    }
    // The bytes of every lane of a, and from 64 on of b.
    struct Bytes {
        int at[4];
    };
    INLINE Int bytes_of(Int a, Int b, Bytes bytes) {
        const auto at = [=](int lane) {
            return (bytes.at[0] + lane * 4) | (bytes.at[1] + lane * 4) << 8 |
                   (bytes.at[2] + lane * 4) << 16 | (bytes.at[3] + lane * 4) << 24;
        };
        const Int from =
            _mm512_set_epi32(at(15), at(14), at(13), at(12), at(11), at(10), at(9), at(8), at(7),
                             at(6), at(5), at(4), at(3), at(2), at(1), at(0));
        return _mm512_permutex2var_epi8(a, from, b);
    }
    // table[place] of every byte; bits: the eighth bit of each place, the ninth and so on
    template <int n> INLINE Int look_up(const uint8_t * table, Int places, const __mmask64 * bits) {
        if constexpr (n == 128) {
            return _mm512_permutex2var_epi8(load(table), places, load(table + 64));
        } else {
            constexpr int bit = n == 256 ? 0 : n == 512 ? 1 : 2;
            return _mm512_mask_blend_epi8(bits[bit], look_up<n / 2>(table, places, bits),
                                          look_up<n / 2>(table + n / 2, places, bits));
        }
    }
    // the sizes at the four digits of two bits of every byte
    INLINE void look_up_digits(const uint8_t (&sizes)[3][64], Int digits, Int * found) {
        found[0] = _mm512_permutexvar_epi8(digits, load(sizes[0]));
        found[1] = _mm512_permutexvar_epi8(digits, load(sizes[1]));
        found[2] = _mm512_permutexvar_epi8(digits, load(sizes[2]));
        found[3] = _mm512_permutexvar_epi8(right<2>(digits), load(sizes[2]));
    }
    // total less the byte where it has a sign: byte j of found[k] that of bit 16 half + 4 j + k of a lane
    template <int half> INLINE void set_signs(Int * found, Int signs, uint8_t total) {
        constexpr int at   = 0x01010000 + 2 * half * 0x01010101;
        const Int     here = _mm512_shuffle_epi8(
            signs, _mm512_set4_epi32(at + 0x0c0c0c0c, at + 0x08080808, at + 0x04040404, at));
        const Int most = _mm512_set1_epi8(static_cast<char>(total));
        for (int k = 0; k < 4; k++) {
            const __mmask64 where = _mm512_test_epi8_mask(here, _mm512_set1_epi16(0x1001 << k));
            found[k]              = _mm512_mask_sub_epi8(found[k], where, most, found[k]);
        }
    }
};

// 32 activations, each half with its values in the order 0, 4, 8, 12, 1, 5 and so on: a word meets one
// value of each of four places.
class TransposedBlock : public Avx512Block {
  public:
    using Avx512Block::Avx512Block;

    void quantize(float inverse, uint8_t * quants, int32_t * sums) const {
        Avx512Block::quantize(inverse, quants, sums);
        const __m256i from = _mm256_set_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400,
                                              0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
        auto * const  at   = reinterpret_cast<__m256i *>(quants);
        _mm256_storeu_si256(at, _mm256_shuffle_epi8(_mm256_loadu_si256(at), from));
    }
};

// One that looks places up in tables of bytes, if the type is one of these.
template <class... Types> void replace(WeightType & type) {
    const auto replace_by = [&](const WeightType & made, UnpackKernel unpack_signed) {
        if (type.type == made.type) {
            type               = made;
            type.quantize      = quantize_columns<TransposedBlock>;
            type.unpack_signed = unpack_signed;
        }
    };
    (replace_by(weight_type<Avx512Vbmi, Types>(), unpack_panel<Avx512Vbmi, Types, true>), ...);
}

}  // namespace

namespace inferos::kernels {

const Variant * variant_avx512vbmi() {
    static const Variant & other = *variant_avx512vnni();
    static WeightType      types[std::size(WeightTable<Avx512, WeightTypes>::types)];
    static const Variant   variant = [] {
        std::copy_n(other.types, other.n_types, types);
        for (WeightType & type : types) {
            replace<IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS>(type);
        }
        Variant made = other;
        made.name    = "avx512vbmi";
        made.types   = types;
        return made;
    }();
    return &variant;
}

}  // namespace inferos::kernels
