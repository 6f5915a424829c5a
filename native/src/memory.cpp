#include "inferos.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <new>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "llama.h"

// llama.h has no call for the bytes of a context's buffers: only a line of its log has them, rounded
// to hundredths of a MiB. What follows is from llama.cpp's src/llama-ext.h, which is not installed,
// and exported by the libllama of the version that this package pins. It is weak, so that a libllama
// without it can be used, and what it returns is compared with what llama.h does say, so that one
// with other fields gives an error.
struct llama_memory_breakdown_data {
    size_t model   = 0;
    size_t context = 0;
    size_t compute = 0;
};
using llama_memory_breakdown = std::map<ggml_backend_buffer_type_t, llama_memory_breakdown_data>;
__attribute__((weak)) LLAMA_API llama_memory_breakdown
llama_get_memory_breakdown(const struct llama_context * ctx);

INFEROS_API int32_t inferos_context_buffers(const llama_context * context,
                                            inferos_buffers *     buffers) {
    *buffers = {};
    if (llama_get_memory_breakdown == nullptr) {
        return INFEROS_UNKNOWN_LLAMA;
    }
    try {
        for (const auto & [type, bytes] : llama_get_memory_breakdown(context)) {
            buffers->model += bytes.model;
            buffers->context += bytes.context;
            buffers->compute += bytes.compute;
        }
        // the model's buffers hold its tensors, and no context computes without one of its own
        const uint64_t tensors = llama_model_size(llama_get_model(context));
        const bool     likely  = buffers->model >= tensors && buffers->compute > 0;
        return likely ? INFEROS_OK : INFEROS_UNKNOWN_LLAMA;
    } catch (const std::bad_alloc &) {
        return INFEROS_NO_MEMORY;
    }
}

INFEROS_API int32_t inferos_file_residency(const char * path, uint64_t offset, uint64_t length,
                                           uint64_t * resident) {
    *resident      = 0;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return errno;
    }
    const uint64_t page  = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uint64_t chunk = page << 16;  // a 64 KiB vector at a time
    const uint64_t end   = offset + length;
    int32_t        error = 0;
    try {
        std::vector<unsigned char> pages(chunk / page);
        for (uint64_t at = offset / page * page; at < end && error == 0; at += chunk) {
            const uint64_t size = std::min(chunk, end - at);
            void *         mapped =
                mmap(nullptr, size, PROT_READ, MAP_SHARED, file, static_cast<off_t>(at));
            if (mapped == MAP_FAILED) {
                error = errno;
                break;
            }
            if (mincore(mapped, size, pages.data()) != 0) {
                error = errno;
            } else {
                const uint64_t count = (size + page - 1) / page;
                for (uint64_t i = 0; i < count; ++i) {
                    if (pages[i] & 1) {
                        // the first and the last page count with what was asked for of them
                        const uint64_t from = std::max(at + i * page, offset);
                        *resident += std::min(at + (i + 1) * page, end) - from;
                    }
                }
            }
            munmap(mapped, size);
        }
    } catch (const std::bad_alloc &) {
        error = ENOMEM;
    }
    close(file);
    return error;
}
