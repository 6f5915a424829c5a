#include "isa_neon.h"
#include "variant.h"

namespace inferos::kernels {

const Variant * variant_neon() {
    return variant_table<Neon>("neon");
}

}  // namespace inferos::kernels
