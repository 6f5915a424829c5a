// How values become rows of a KV cache: for the backend, where it computes whole graphs, and for a
// change of stage. What llama.cpp writes itself has ggml's own encoding.
#pragma once

#include <cstdint>

namespace inferos {

// n float32 values into a row of a ggml type. q4_0 is searched for (cache_rows.cpp), in ggml's
// format; other types are written by ggml's own functions.
void narrow_cache_row(const float * values, int32_t type, void * row, int64_t n);

}  // namespace inferos
