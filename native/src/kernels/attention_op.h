// FLASH_ATTN_EXT: attention over a KV cache, shared out over threads.
#pragma once

#include <vector>

#include "attention_reading.h"
#include "kernels.h"
#include "operation.h"

struct ggml_tensor;

namespace inferos::kernels {

// Whether this node's types and shapes have kernels. Depends on nothing else.
bool takes_attention(const Variant & variant, const ggml_tensor * op);

// What this node's layer sees, where there are windows, one for each layer; 0: everything. False: the
// layer is not known. It is the one whose cache the node reads, named "cache_k_l5" by llama_kv_cache.
bool find_window(const ggml_tensor * op, const std::vector<int32_t> & windows, Window & window);

Operation * make_attention(const Variant & variant, const ggml_tensor * op, const Window & window,
                           int n_members, Arena & arena);

// One alone. False: no memory.
bool compute_attention(const Variant & variant, const ggml_tensor * op, const Window & window,
                       int n_members, Scratch & scratch);

}  // namespace inferos::kernels
