// FLASH_ATTN_EXT: attention over a KV cache, shared out over threads.
#pragma once

#include "kernels.h"
#include "team.h"

struct ggml_tensor;

namespace inferos::kernels {

// Whether this node's types and shapes have kernels. Depends on nothing else.
bool takes_attention(const Variant & variant, const ggml_tensor * op);

// False: no memory.
bool compute_attention(const Variant & variant, const ggml_tensor * op, int n_threads,
                       Scratch & scratch);

}  // namespace inferos::kernels
