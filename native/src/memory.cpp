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

// From llama.cpp's src/llama-ext.h, which is not installed: exported by libllama of the version that
// this package pins. A libllama without it cannot be loaded beside this library.
struct llama_memory_breakdown_data {
    size_t model   = 0;
    size_t context = 0;
    size_t compute = 0;
};
using llama_memory_breakdown = std::map<ggml_backend_buffer_type_t, llama_memory_breakdown_data>;
LLAMA_API llama_memory_breakdown llama_get_memory_breakdown(const struct llama_context * ctx);

INFEROS_API int32_t inferos_context_buffers(const llama_context * context,
                                            inferos_buffers * buffers) {
    try {
        *buffers = {};
        for (const auto & [type, bytes] : llama_get_memory_breakdown(context)) {
            buffers->model   += bytes.model;
            buffers->context += bytes.context;
            buffers->compute += bytes.compute;
        }
        return INFEROS_OK;
    } catch (const std::bad_alloc &) {
        return INFEROS_NO_MEMORY;
    }
}

INFEROS_API int32_t inferos_file_residency(const char * path, uint64_t offset, uint64_t length,
                                           uint64_t * resident) {
    *resident       = 0;
    const int file  = open(path, O_RDONLY | O_CLOEXEC);
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
            const uint64_t size   = std::min(chunk, end - at);
            void *         mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, file,
                                         static_cast<off_t>(at));
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
