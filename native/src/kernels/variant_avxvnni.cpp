#include "isa_avx2.h"
#include "variant.h"

namespace inferos::kernels {

const Variant * variant_avxvnni() {
    return variant_table<Avx2>("avxvnni");
}

}  // namespace inferos::kernels
