// FLASH_ATTN_EXT: attention over a KV cache, shared out over threads.
#pragma once

#include "kernels.h"
#include "operation.h"

struct ggml_tensor;

namespace inferos::kernels {

// Whether this node's types and shapes have kernels. Depends on nothing else.
bool takes_attention(const Variant & variant, const ggml_tensor * op);

Operation * make_attention(const Variant & variant, const ggml_tensor * op, int n_members,
                           Arena & arena);

// One alone. False: no memory.
bool compute_attention(const Variant & variant, const ggml_tensor * op, int n_members,
                       Scratch & scratch);

}  // namespace inferos::kernels
