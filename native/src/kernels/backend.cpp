// The ggml backend "inferos": an accelerator in llama.cpp's sense that computes on the CPU. Its
// buffers are the CPU's, so weights stay where they were loaded; llama.cpp's scheduler gives it the
// operations that it claims and leaves all others to the CPU backend.
//
// There are three devices. The registered one makes the backends of contexts; a context that is made
// while this thread has the kernels switched off gets a backend of one that claims nothing, and where
// a few columns are to be computed as single ones are, of one that claims these products as well. So
// what a backend claims never changes, and llama.cpp may reuse its graphs.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include <dlfcn.h>

#include "attention_op.h"
#include "columns.h"
#include "float_product.h"
#include "ggml-cpu.h"
#include "ggml_abi.h"
#include "inferos.h"
#include "kernels.h"
#include "mul_mat.h"
#include "row_chain.h"

namespace inferos::kernels {
namespace {

// What the contexts that this thread creates use, see inferos_kernels_switch.
enum class Use : int32_t {
    kNothing           = 0,
    kKernels           = 1,
    kKernelsAndColumns = 2,
    kWholeGraph        = 3,
    kWholeGraphErf     = 4,
};

bool is_whole(Use use) {
    return use == Use::kWholeGraph || use == Use::kWholeGraphErf;
}

thread_local Use use_of_new = Use::kKernels;

// Tokens that each layer of the contexts that this thread creates sees, see inferos_kernels_windows.
thread_local std::vector<int32_t> windows_of_new;

struct Instance {
    Instance(Use its_use, const std::vector<int32_t> & its_windows)
        : use(its_use), windows(its_windows) {}

    const Use                  use;
    const std::vector<int32_t> windows;  // empty: the mask is as the graph says
    int                        n_threads  = 1;
    ggml_abort_callback        abort      = nullptr;
    void *                     abort_data = nullptr;
    Arena                      arena;
    Scratch                    scratch;
    std::vector<Operation *>   operations;
    int64_t                    n_products = 0;  // values that matrices compute
    std::vector<Turns>         turns;           // of every member
};

Instance & instance_of(abi::Backend * backend) {
    return *static_cast<Instance *>(backend->context);
}

// ---- operations

const WeightType * weight_type_of(const ggml_tensor * weights) {
    const Variant * variant = best_variant();
    return variant != nullptr ? find_type(*variant, weights->type) : nullptr;
}

const FloatType * float_type_of(const ggml_tensor * weights) {
    const Variant * variant = best_variant();
    return variant != nullptr ? find_float_type(*variant, weights->type) : nullptr;
}

// Whether it is a matrix of a LoRA adapter. llama.cpp does not mark the buffers of these as weights.
bool is_of_adapter(const ggml_tensor * tensor) {
    const size_t length = std::strlen(tensor->name), n = std::strlen(".lora_a");
    const char * ending = tensor->name + (length < n ? 0 : length - n);
    return std::strcmp(ending, ".lora_a") == 0 || std::strcmp(ending, ".lora_b") == 0;
}

// Weights of a model or an adapter, rather than a cache or a matrix that a graph brings along.
bool is_weight(const ggml_tensor * tensor) {
    return tensor->buffer != nullptr &&
           (ggml_backend_buffer_get_usage(tensor->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS ||
            is_of_adapter(tensor));
}

// A plain matrix times columns of floats.
bool is_matrix_product(const ggml_tensor * op) {
    const ggml_tensor * w = op->src[0];
    const ggml_tensor * x = op->src[1];
    return x->type == GGML_TYPE_F32 && op->type == GGML_TYPE_F32 && w->ne[2] == 1 &&
           w->ne[3] == 1 && x->ne[2] == 1 && x->ne[3] == 1 && x->nb[0] == sizeof(float) &&
           x->nb[1] % sizeof(float) == 0 && op->nb[0] == sizeof(float) &&
           op->nb[1] % sizeof(float) == 0;
}

bool takes_float_product(const ggml_tensor * op) {
    const ggml_tensor * w    = op->src[0];
    const FloatType *   type = float_type_of(w);
    return type != nullptr && is_matrix_product(op) && is_weight(w) && w->ne[0] % kFloatUnit == 0 &&
           w->nb[0] == static_cast<size_t>(type->value_bytes);
}

bool takes_mul_mat(const ggml_tensor * op) {
    const ggml_tensor * w    = op->src[0];
    const WeightType *  type = weight_type_of(w);
    return type != nullptr && is_matrix_product(op) && w->ne[0] % type->unit_values == 0 &&
           w->ne[1] >= kMostRows && w->nb[0] == static_cast<size_t>(type->unit_bytes);
}

// Of the products of a model's weights that our kernels do not take, those with a few columns, one per
// token. A single column is left to llama.cpp, which computes it in the same way.
bool takes_columns(const ggml_tensor * op) {
    const ggml_tensor * w = op->src[0];
    return is_matrix_product(op) && op->src[1]->ne[1] >= 2 && op->src[1]->ne[1] <= kMostColumns &&
           is_weight(w) && has_dot_product(w->type) && w->nb[0] == ggml_type_size(w->type);
}

Operation * make_product(const ggml_tensor * op, Instance & instance) {
    const ggml_tensor * w   = op->src[0];
    const ggml_tensor * x   = op->src[1];
    const MulMat        job = {
        static_cast<const uint8_t *>(w->data),
        w->nb[1],
        w->ne[1],
        w->ne[0],
        static_cast<const float *>(x->data),
        x->nb[1] / sizeof(float),
        static_cast<float *>(op->data),
        op->nb[1] / sizeof(float),
        x->ne[1],
    };
    if (takes_float_product(op)) {
        return instance.arena.make<FloatProduct>(*float_type_of(w), job, instance.n_threads);
    }
    if (!takes_mul_mat(op)) {
        return instance.arena.make<Columns>(w->type, job, instance.n_threads);
    }
    return instance.arena.make<Product>(*best_variant(), *weight_type_of(w), job,
                                        instance.n_threads);
}

// The operation of the first of these nodes, and perhaps of more; null: none of ours.
Operation * make_operation(ggml_tensor * const * nodes, int n_nodes, Instance & instance,
                           int & n_taken) {
    const ggml_tensor * first = nodes[0];
    n_taken                   = 1;
    if (first->op == GGML_OP_FLASH_ATTN_EXT) {
        Window window;
        if (!find_window(first, instance.windows, window)) {
            return nullptr;
        }
        return make_attention(*best_variant(), first, window, instance.n_threads, instance.arena);
    }
    if (takes_row_operation(first)) {
        const RowSettings settings = {best_variant()->rows_of_floats, instance.turns.data(),
                                      instance.n_threads, instance.use == Use::kWholeGraphErf};
        return make_row_chain(settings, nodes, n_nodes, instance.arena, n_taken);
    }
    return first->op == GGML_OP_MUL_MAT ? make_product(first, instance) : nullptr;
}

// ---- the backend

const char * backend_name(abi::Backend *) {
    return "inferos";
}

void backend_free(abi::Backend * backend) {
    delete static_cast<Instance *>(backend->context);
    delete backend;
}

// The operations of a graph in their order, with memory to work in.
enum ggml_status prepare(ggml_cgraph * graph, Instance & instance) {
    instance.operations.clear();
    instance.n_products = 0;
    instance.arena.clear();
    instance.turns.resize(static_cast<size_t>(instance.n_threads));
    ggml_tensor ** nodes     = ggml_graph_nodes(graph);
    const int      n         = ggml_graph_n_nodes(graph);
    size_t         n_scratch = 0;
    for (int i = 0, n_taken = 1; i < n; i += n_taken) {
        n_taken = 1;
        if (is_without_work(nodes[i])) {
            continue;
        }
        Operation * operation = make_operation(nodes + i, n - i, instance, n_taken);
        if (operation == nullptr) {
            return GGML_STATUS_FAILED;
        }
        instance.operations.push_back(operation);
        if (nodes[i]->op == GGML_OP_MUL_MAT) {
            instance.n_products += ggml_nelements(nodes[i]);
        }
        n_scratch = std::max(n_scratch, operation->scratch_bytes());
    }
    uint8_t * scratch = instance.scratch.get(n_scratch);
    for (Operation * operation : instance.operations) {
        operation->place(scratch);
    }
    return GGML_STATUS_SUCCESS;
}

enum ggml_status backend_compute(abi::Backend * backend, ggml_cgraph * graph) {
    Instance & instance = instance_of(backend);
    try {
        if (const auto status = prepare(graph, instance); status != GGML_STATUS_SUCCESS) {
            return status;
        }
    } catch (const std::bad_alloc &) {
        return GGML_STATUS_ALLOC_FAILED;
    }
    const auto work = [&instance](const Member & me) {
        for (Operation * operation : instance.operations) {
            if (me.index == 0 && instance.abort != nullptr && instance.abort(instance.abort_data)) {
                me.team.call_off();
            }
            if (me.team.is_called_off()) {
                return;
            }
            operation->work(me);
        }
    };
    Team & team = Team::of_this_thread();
    team.call(instance.n_threads, !is_whole(instance.use), instance.n_products, work);
    return team.is_called_off() ? GGML_STATUS_ABORTED : GGML_STATUS_SUCCESS;
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
        case GGML_OP_MUL_MAT: return takes_mul_mat(op) || takes_float_product(op);
        case GGML_OP_FLASH_ATTN_EXT: return takes_attention(*best_variant(), op);
        default: return is_view(op->op);
    }
}
bool whole_supports_op(abi::Device * device, const ggml_tensor * op) {
    return device_supports_op(device, op) || takes_row_operation(op);
}
bool columns_supports_op(abi::Device * device, const ggml_tensor * op) {
    return device_supports_op(device, op) || (op->op == GGML_OP_MUL_MAT && takes_columns(op));
}
bool idle_supports_op(abi::Device *, const ggml_tensor *) {
    return false;
}

abi::Backend * init_backend(abi::Device * device, const char * params);

abi::Device * device_for(Use use);

abi::Registry * registry();

abi::Device make_device(decltype(abi::DeviceCalls::supports_op) supports_op) {
    abi::Device device           = {};
    device.calls.get_name        = device_name;
    device.calls.get_description = device_description;
    device.calls.get_memory      = device_memory;
    device.calls.get_type        = device_type;
    device.calls.get_props       = device_props;
    device.calls.init_backend    = init_backend;
    device.calls.get_buffer_type = device_buffer_type;
    device.calls.supports_op     = supports_op;
    device.calls.supports_buft   = device_supports_buffer;
    device.registry              = registry();
    return device;
}

abi::Device * device_for(Use use) {
    static abi::Device active  = make_device(device_supports_op);
    static abi::Device columns = make_device(columns_supports_op);
    static abi::Device whole   = make_device(whole_supports_op);
    static abi::Device idle    = make_device(idle_supports_op);
    switch (use) {
        case Use::kNothing: return &idle;
        case Use::kKernelsAndColumns: return &columns;
        case Use::kWholeGraph:
        case Use::kWholeGraphErf: return &whole;
        default: return &active;
    }
}

Instance * make_instance() {
    try {
        return new Instance(use_of_new, windows_of_new);
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

abi::Backend * init_backend(abi::Device *, const char *) {
    static ggml_guid guid     = {0x69, 0x6e, 0x66, 0x65, 0x72, 0x2d, 0x6f, 0x73,
                                 0x2d, 0x6b, 0x65, 0x72, 0x6e, 0x65, 0x6c, 0x73};
    auto *           backend  = new (std::nothrow) abi::Backend{};
    Instance *       instance = make_instance();
    if (backend == nullptr || instance == nullptr) {
        delete backend;
        delete instance;
        return nullptr;
    }
    backend->guid                = &guid;
    backend->calls.get_name      = backend_name;
    backend->calls.free          = backend_free;
    backend->calls.graph_compute = backend_compute;
    backend->device              = device_for(use_of_new);
    backend->context             = instance;
    return backend;
}

// ---- the registry

void set_n_threads(ggml_backend_t backend, int n_threads) {
    instance_of(reinterpret_cast<abi::Backend *>(backend)).n_threads =
        std::clamp(n_threads, 1, Team::kMostMembers);
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
    return device_for(Use::kKernels);
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

INFEROS_API int32_t inferos_kernels_takes(int32_t type) {
    const auto * variant = inferos::kernels::best_variant();
    return variant != nullptr && (inferos::kernels::find_type(*variant, type) != nullptr ||
                                  inferos::kernels::find_float_type(*variant, type) != nullptr);
}

INFEROS_API void inferos_kernels_switch(int32_t use) {
    inferos::kernels::use_of_new = static_cast<inferos::kernels::Use>(use);
}

INFEROS_API int32_t inferos_kernels_windows(int32_t n_layers, const int32_t * windows) {
    try {
        inferos::kernels::windows_of_new.assign(windows, windows + n_layers);
    } catch (const std::bad_alloc &) {
        return INFEROS_NO_MEMORY;
    }
    return INFEROS_OK;
}

INFEROS_API double inferos_kernels_left_out(void) {
    return inferos::kernels::Team::share_left_out();
}

INFEROS_API int32_t inferos_kernels_most_columns(void) {
    return static_cast<int32_t>(inferos::kernels::kMostColumns);
}

INFEROS_API int32_t inferos_kernels_takes_columns(int32_t type) {
    return inferos::kernels::has_dot_product(static_cast<ggml_type>(type));
}
