#include "ggml_abi.h"

#include <cstring>

#include <dlfcn.h>

#include "ggml-cpu.h"

namespace inferos::abi {
namespace {

// The file that an address belongs to; null if it is no code or data of any library.
const char * file_of(const void * address) {
    Dl_info where = {};
    return dladdr(address, &where) != 0 ? where.dli_fname : nullptr;
}

template <typename Function> bool lies_in(Function * function, const char * file) {
    const char * found = file_of(reinterpret_cast<const void *>(function));
    return found != nullptr && std::strcmp(found, file) == 0;
}

}  // namespace

const char * abi_complaint() {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) {
        return "llama.cpp has no CPU device";
    }
    const auto * theirs = reinterpret_cast<const Device *>(device);
    const auto * file   = file_of(reinterpret_cast<const void *>(&ggml_backend_cpu_reg));
    const auto & calls  = theirs->calls;
    if (file == nullptr || !lies_in(calls.get_name, file) || !lies_in(calls.get_type, file) ||
        !lies_in(calls.init_backend, file) || !lies_in(calls.get_buffer_type, file) ||
        !lies_in(calls.supports_op, file) || !lies_in(calls.supports_buft, file)) {
        return "llama.cpp's devices are laid out differently";
    }
    auto * self = const_cast<Device *>(theirs);
    if (std::strcmp(calls.get_name(self), ggml_backend_dev_name(device)) != 0 ||
        calls.get_type(self) != GGML_BACKEND_DEVICE_TYPE_CPU ||
        calls.get_buffer_type(self) != ggml_backend_cpu_buffer_type() ||
        !calls.supports_buft(self, ggml_backend_cpu_buffer_type())) {
        return "llama.cpp's devices are laid out differently";
    }
    const Registry * registry = theirs->registry;
    if (reinterpret_cast<ggml_backend_reg_t>(theirs->registry) != ggml_backend_cpu_reg() ||
        registry->api_version != kApiVersion) {
        return "llama.cpp's backend interface has another version";
    }
    if (!lies_in(registry->calls.get_device, file) ||
        registry->calls.get_device_count(theirs->registry) != 1 ||
        registry->calls.get_device(theirs->registry, 0) != theirs) {
        return "llama.cpp's registries are laid out differently";
    }
    ggml_backend_t backend = ggml_backend_dev_init(device, nullptr);
    if (backend == nullptr) {
        return "llama.cpp's CPU backend does not start";
    }
    const auto * ours = reinterpret_cast<const Backend *>(backend);
    const bool   same = ours->device == theirs && lies_in(ours->calls.get_name, file) &&
                        lies_in(ours->calls.graph_compute, file) &&
                        std::strcmp(ours->calls.get_name(const_cast<Backend *>(ours)),
                                    ggml_backend_name(backend)) == 0;
    ggml_backend_free(backend);
    return same ? nullptr : "llama.cpp's backends are laid out differently";
}

}  // namespace inferos::abi
