#include "isa_avx2.h"
#include "variant.h"

namespace inferos::kernels {

const Variant * variant_avx2() {
    return variant_table<Avx2>("avx2");
}

}  // namespace inferos::kernels
