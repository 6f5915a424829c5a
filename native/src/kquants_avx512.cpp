#include "kquants_blocks.h"

void kquants_avx512(const KquantRows & rows) {
    quantize_blocks(rows);
}
