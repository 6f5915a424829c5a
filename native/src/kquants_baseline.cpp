#include "kquants_blocks.h"

void kquants_baseline(const KquantRows & rows) {
    quantize_blocks(rows);
}
