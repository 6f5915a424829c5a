#include "attention_op.h"

namespace inferos::kernels {

bool takes_attention(const Variant &, const ggml_tensor *) {
    return false;
}

bool compute_attention(const Variant &, const ggml_tensor *, int, Scratch &) {
    return false;
}

}  // namespace inferos::kernels
