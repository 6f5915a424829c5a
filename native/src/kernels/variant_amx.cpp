// AMX's instructions (Intel's manual, volume 2), as assembly: GCC's intrinsics do not say what memory
// they read, and GCC 12 leaves out the stores that _tile_loadconfig reads.
#include "amx.h"

namespace {

struct Amx {
    static void load_shapes(const Shapes & shapes) {
        __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
    }
    static void store_shapes(Shapes & shapes) {
        __asm__ volatile("sttilecfg %0" : "=m"(shapes) : : "memory");
    }
    template <int to> INLINE void zero() { __asm__ volatile("tilezero %%tmm%c0" : : "i"(to)); }
    template <int to> INLINE void load(const void * from, size_t stride) {
        __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0"
                         :
                         : "i"(to), "r"(from), "r"(stride)
                         : "memory");
    }
    template <int from> INLINE void store(void * to, size_t stride) {
        __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)"
                         :
                         : "i"(from), "r"(to), "r"(stride)
                         : "memory");
    }
    template <int sum, int a, int b> INLINE void add_products() {
        __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
    }
};

}  // namespace

namespace inferos::kernels {

const Variant * variant_amx() {
#ifdef INFEROS_ASSEMBLES_AMX
    return amx_variant<Amx>("amx");
#else
    return nullptr;
#endif
}

}  // namespace inferos::kernels
