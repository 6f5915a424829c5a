// The 256-bit kernels with VNNI in AVX-512's encoding: for kernels_check.cpp alone.
#include "isa_avx2.h"
#include "variant.h"

namespace inferos::kernels {

const Variant * variant_avx512vl() {
    return variant_table<Avx2>("avx512vl");
}

}  // namespace inferos::kernels
