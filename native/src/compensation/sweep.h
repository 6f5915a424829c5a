// What the two halves of a compensated quantization agree on.
#pragma once

#include <stdint.h>

namespace inferos {

// Columns whose compensated values are computed at once, before the sweep goes through them one by
// one; a multiple of every block of values.
constexpr int64_t kGroup = 256;

}  // namespace inferos
