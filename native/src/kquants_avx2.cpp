#include "kquants_blocks.h"

void kquants_avx2(const KquantRows & rows) {
    quantize_blocks(rows);
}
