#include "isa_avx512.h"
#include "variant.h"

namespace inferos::kernels {

const Variant * variant_avx512vnni() {
    return variant_table<Avx512>("avx512vnni");
}

}  // namespace inferos::kernels
