// The ggml backend "inferos": an accelerator in llama.cpp's sense that computes on the CPU. Its
// buffers are the CPU's, so weights stay where they were loaded; llama.cpp's scheduler gives it the
// operations that it claims and leaves all others to the CPU backend.
//
// There are two devices. The registered one makes the backends of contexts; a context that is made
// while this thread has the kernels switched off gets a backend of the other, which claims nothing.
// So what a backend claims never changes, and llama.cpp may reuse its graphs.
#include <cstring>
#include <new>

#include <dlfcn.h>

#include "attention_op.h"
#include "ggml-cpu.h"
#include "ggml_abi.h"
#include "inferos.h"
#include "kernels.h"
#include "mul_mat.h"

namespace inferos::kernels {
namespace {

struct Instance {
    int                 n_threads  = 1;
    ggml_abort_callback abort      = nullptr;
    void *              abort_data = nullptr;
    Scratch             scratch;
};

thread_local bool switched_on = true;

Instance & instance_of(abi::Backend * backend) {
    return *static_cast<Instance *>(backend->context);
}

// ---- operations

const WeightType * weight_type_of(const ggml_tensor * weights) {
    const Variant * variant = best_variant();
    return variant != nullptr ? find_type(*variant, weights->type) : nullptr;
}

bool takes_mul_mat(const ggml_tensor * op) {
    const ggml_tensor * w = op->src[0];
    const ggml_tensor * x = op->src[1];
    const WeightType *  type = weight_type_of(w);
    return type != nullptr && x->type == GGML_TYPE_F32 && op->type == GGML_TYPE_F32 &&
           w->ne[0] % type->unit_values == 0 && w->ne[1] >= kMostRows &&
           w->ne[2] == 1 && w->ne[3] == 1 && x->ne[2] == 1 && x->ne[3] == 1 &&
           w->nb[0] == static_cast<size_t>(type->unit_bytes) && x->nb[0] == sizeof(float) &&
           x->nb[1] % sizeof(float) == 0 && op->nb[0] == sizeof(float) &&
           op->nb[1] % sizeof(float) == 0;
}

bool compute_mul_mat(const ggml_tensor * op, Instance & instance) {
    const ggml_tensor * w = op->src[0];
    const ggml_tensor * x = op->src[1];
    const MulMat        job = {
        static_cast<const uint8_t *>(w->data), w->nb[1], w->ne[1], w->ne[0],
        static_cast<const float *>(x->data), x->nb[1] / sizeof(float),
        static_cast<float *>(op->data), op->nb[1] / sizeof(float), x->ne[1],
    };
    return mul_mat(*best_variant(), *weight_type_of(w), job, instance.n_threads, instance.scratch);
}

bool is_no_operation(enum ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_RESHAPE || op == GGML_OP_VIEW ||
           op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

// ---- the backend

const char * backend_name(abi::Backend *) {
    return "inferos";
}

void backend_free(abi::Backend * backend) {
    delete static_cast<Instance *>(backend->context);
    delete backend;
}

enum ggml_status backend_compute(abi::Backend * backend, ggml_cgraph * graph) {
    Instance & instance = instance_of(backend);
    const int  n        = ggml_graph_n_nodes(graph);
    for (int i = 0; i < n; i++) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (is_no_operation(node->op) || (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0 ||
            ggml_is_empty(node)) {
            continue;
        }
        if (instance.abort != nullptr && instance.abort(instance.abort_data)) {
            return GGML_STATUS_ABORTED;
        }
        bool done = false;
        switch (node->op) {
            case GGML_OP_MUL_MAT: done = compute_mul_mat(node, instance); break;
            case GGML_OP_FLASH_ATTN_EXT:
                done = compute_attention(*best_variant(), node, instance.n_threads,
                                         instance.scratch);
                break;
            default: return GGML_STATUS_FAILED;
        }
        if (!done) {
            return GGML_STATUS_ALLOC_FAILED;
        }
    }
    return GGML_STATUS_SUCCESS;
}

// ---- the devices

const char * device_name(abi::Device *) {
    return "inferos";
}
const char * device_description(abi::Device *) {
    return "infer-os CPU kernels";
}
void device_memory(abi::Device *, size_t * free, size_t * total) {
    *free  = 0;
    *total = 0;
}
enum ggml_backend_dev_type device_type(abi::Device *) {
    return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}
void device_props(abi::Device * device, ggml_backend_dev_props * props) {
    *props             = {};
    props->name        = device_name(device);
    props->description = device_description(device);
    props->type        = device_type(device);
}
ggml_backend_buffer_type_t device_buffer_type(abi::Device *) {
    return ggml_backend_cpu_buffer_type();
}
bool device_supports_buffer(abi::Device *, ggml_backend_buffer_type_t type) {
    return ggml_backend_buft_is_host(type);
}
bool device_supports_op(abi::Device *, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_MUL_MAT: return takes_mul_mat(op);
        case GGML_OP_FLASH_ATTN_EXT: return takes_attention(*best_variant(), op);
        default: return is_no_operation(op->op);
    }
}
bool idle_supports_op(abi::Device *, const ggml_tensor *) {
    return false;
}

abi::Backend * init_backend(abi::Device * device, const char * params);

abi::Device * device_for(bool on);

abi::Registry * registry();

abi::Device make_device(bool on) {
    abi::Device device           = {};
    device.calls.get_name        = device_name;
    device.calls.get_description = device_description;
    device.calls.get_memory      = device_memory;
    device.calls.get_type        = device_type;
    device.calls.get_props       = device_props;
    device.calls.init_backend    = init_backend;
    device.calls.get_buffer_type = device_buffer_type;
    device.calls.supports_op     = on ? device_supports_op : idle_supports_op;
    device.calls.supports_buft   = device_supports_buffer;
    device.registry              = registry();
    return device;
}

abi::Device * device_for(bool on) {
    static abi::Device active = make_device(true);
    static abi::Device idle   = make_device(false);
    return on ? &active : &idle;
}

abi::Backend * init_backend(abi::Device *, const char *) {
    static ggml_guid guid = {0x69, 0x6e, 0x66, 0x65, 0x72, 0x2d, 0x6f, 0x73,
                             0x2d, 0x6b, 0x65, 0x72, 0x6e, 0x65, 0x6c, 0x73};
    auto * backend  = new (std::nothrow) abi::Backend{};
    auto * instance = new (std::nothrow) Instance;
    if (backend == nullptr || instance == nullptr) {
        delete backend;
        delete instance;
        return nullptr;
    }
    backend->guid                = &guid;
    backend->calls.get_name      = backend_name;
    backend->calls.free          = backend_free;
    backend->calls.graph_compute = backend_compute;
    backend->device              = device_for(switched_on);
    backend->context             = instance;
    return backend;
}

// ---- the registry

void set_n_threads(ggml_backend_t backend, int n_threads) {
    instance_of(reinterpret_cast<abi::Backend *>(backend)).n_threads = n_threads < 1 ? 1 : n_threads;
}
void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    Instance & instance = instance_of(reinterpret_cast<abi::Backend *>(backend));
    instance.abort      = callback;
    instance.abort_data = data;
}

const char * registry_name(abi::Registry *) {
    return "inferos";
}
size_t registry_n_devices(abi::Registry *) {
    return 1;
}
abi::Device * registry_device(abi::Registry *, size_t) {
    return device_for(true);
}
void * registry_function(abi::Registry *, const char * name) {
    if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(&set_n_threads);
    }
    if (std::strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return reinterpret_cast<void *>(&set_abort_callback);
    }
    return nullptr;
}

abi::Registry * registry() {
    static abi::Registry made = {
        abi::kApiVersion,
        {registry_name, registry_n_devices, registry_device, registry_function},
        nullptr,
    };
    return &made;
}

}  // namespace
}  // namespace inferos::kernels

// ---- what ggml_backend_load and Python call

INFEROS_API ggml_backend_reg_t ggml_backend_init(void) {
    using namespace inferos;
    if (kernels::best_variant() == nullptr || abi::abi_complaint() != nullptr) {
        return nullptr;
    }
    return reinterpret_cast<ggml_backend_reg_t>(kernels::registry());
}

INFEROS_API const char * inferos_kernels_complaint(void) {
#ifndef _OPENMP
    return "infer-os was built without OpenMP";
#else
    const char * missing = inferos::kernels::missing_features();
    if (missing[0] != '\0') {
        return missing;
    }
    const char * complaint = inferos::abi::abi_complaint();
    return complaint != nullptr ? complaint : "";
#endif
}

INFEROS_API const char * inferos_kernels_start(void) {
    const char * complaint = inferos_kernels_complaint();
    if (complaint[0] != '\0' || ggml_backend_reg_by_name("inferos") != nullptr) {
        return complaint;
    }
    Dl_info here = {};
    if (dladdr(reinterpret_cast<const void *>(&inferos_kernels_start), &here) == 0 ||
        ggml_backend_load(here.dli_fname) == nullptr) {
        return "llama.cpp does not load them";
    }
    return "";
}

INFEROS_API const char * inferos_kernels_name(void) {
    const auto * variant = inferos::kernels::best_variant();
    return variant != nullptr ? variant->name : "";
}

INFEROS_API int32_t inferos_kernels_takes(int32_t type) {
    const auto * variant = inferos::kernels::best_variant();
    return variant != nullptr && inferos::kernels::find_type(*variant, type) != nullptr;
}

INFEROS_API void inferos_kernels_switch(int32_t on) {
    inferos::kernels::switched_on = on != 0;
}

INFEROS_API int32_t inferos_kernels_mul_mat(const char * variant_name,
                                            const inferos_mul_mat * job) {
    using namespace inferos::kernels;
    const MulMat work = {
        static_cast<const uint8_t *>(job->weights), static_cast<size_t>(job->row_bytes),
        job->n_rows, job->n_per_row, job->x, static_cast<size_t>(job->n_per_row), job->out,
        static_cast<size_t>(job->n_rows), job->n_columns,
    };
    if (std::strcmp(variant_name, "portable") == 0) {
        return mul_mat_portable(job->type, work) ? INFEROS_OK : INFEROS_BAD_TYPE;
    }
    const Variant *    variant = variant_named(variant_name);
    const WeightType * type    = variant != nullptr ? find_type(*variant, job->type) : nullptr;
    if (type == nullptr) {
        return INFEROS_BAD_TYPE;
    }
    if (job->n_rows < kMostRows || job->n_per_row % type->unit_values != 0 ||
        job->n_columns < 1 || job->n_threads < 1) {
        return INFEROS_BAD_SHAPE;
    }
    Scratch scratch;
    return mul_mat(*variant, *type, work, job->n_threads, scratch) ? INFEROS_OK
                                                                   : INFEROS_NO_MEMORY;
}
