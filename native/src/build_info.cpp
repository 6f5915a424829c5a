#include "inferos.h"

#include <dlfcn.h>

#include "ggml.h"
#include "llama.h"

INFEROS_API const char * inferos_header_hash(void) {
    return INFEROS_HEADER_HASH;
}

INFEROS_API void inferos_get_build_info(inferos_build_info * info) {
    Dl_info    where          = {};
    const bool found          = dladdr(reinterpret_cast<const void *>(&llama_decode), &where) != 0;
    info->ggml_version_built  = INFEROS_GGML_VERSION;
    info->ggml_version_loaded = ggml_version();
    info->libllama_path       = found && where.dli_fname ? where.dli_fname : "";
    info->sizeof_model_params = sizeof(llama_model_params);
    info->sizeof_context_params = sizeof(llama_context_params);
    info->sizeof_batch          = sizeof(llama_batch);
}
