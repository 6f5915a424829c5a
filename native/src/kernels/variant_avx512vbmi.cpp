// AVX-512 VNNI, and tables of bytes in registers (VBMI) for the types whose quants are looked up.
#include <algorithm>
#include <iterator>

#include "isa_avx512.h"
#include "panel.h"

namespace {

struct Avx512Vbmi : Avx512 {
    static constexpr bool has_byte_tables = true;

    // As in unpack_grid.h, four places of all lanes at once: two tables of 512 bytes give the octal
    // digits of two values each, which are then moved to bytes of their own.
    template <int half>
    static void look_up_places(const uint8_t (&halves)[2][512], Int places, Int ninths,
                               Int * found) {
        const __mmask64 ninth = bits_at<half>(ninths), eighth = _mm512_movepi8_mask(places);
        // a quarter of a table is two registers: whose places are in it
        const __mmask64 quarters[] = {_knot_mask64(_kor_mask64(ninth, eighth)),
                                      _kandn_mask64(ninth, eighth), _kandn_mask64(eighth, ninth),
                                      _kand_mask64(ninth, eighth)};
        const auto      look_up    = [&](const uint8_t * table) ALWAYS {
            Int bytes = places;
            for (int i = 0; i < 4; i++) {
                bytes = _mm512_mask2_permutex2var_epi8(load(table + 128 * i), bytes, quarters[i],
                                                       load(table + 128 * i + 64));
            }
            return bytes;
        };
        const Int first = look_up(halves[0]), last = look_up(halves[1]);
        // a row's four places, 16 bits each: rows 0 and 1 of four, then 2 and 3
        const Int low = _mm512_unpacklo_epi8(first, last), high = _mm512_unpackhi_epi8(first, last);
        const Int front = _mm512_set1_epi64(0x1b1813100b080300);  // bits that bytes begin at
        const Int back  = _mm512_set1_epi64(0x3b3833302b282320);
        const auto pick = [](Int a, Int b, auto which) ALWAYS {
            const Int words = _mm512_castps_si512(
                _mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), which.value));
            return _mm512_or_si512(and_bytes(words, 0x0e), _mm512_set1_epi8(0x11));
        };
        const std::integral_constant<int, 0x88> even;
        const std::integral_constant<int, 0xdd> odd;
        const Int                               a = _mm512_multishift_epi64_epi8(front, low);
        const Int                               b = _mm512_multishift_epi64_epi8(front, high);
        const Int                               c = _mm512_multishift_epi64_epi8(back, low);
        const Int                               d = _mm512_multishift_epi64_epi8(back, high);
        found[0]                                  = pick(a, b, even);
        found[1]                                  = pick(a, b, odd);
        found[2]                                  = pick(c, d, even);
        found[3]                                  = pick(c, d, odd);
    }
};

}  // namespace

namespace inferos::kernels {

const Variant * variant_avx512vbmi() {
    static const Variant & other = *variant_avx512vnni();
    static WeightType      types[std::size(WeightTable<Avx512, WeightTypes>::types)];
    static const Variant   variant = [] {
        std::copy_n(other.types, other.n_types, types);
        for (WeightType & type : types) {
            type = type.type == IQ3_S::type ? weight_type<Avx512Vbmi, IQ3_S>() : type;
        }
        Variant made = other;
        made.name    = "avx512vbmi";
        made.types   = types;
        return made;
    }();
    return &variant;
}

}  // namespace inferos::kernels
