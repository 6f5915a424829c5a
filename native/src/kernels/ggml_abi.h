// The part of ggml's internal backend interface that an external backend fills in, version 2
// (ggml/src/ggml-backend-impl.h of ggml 0.25; the header is not installed). Optional entries that
// stay null have untyped names. abi_complaint() compares this with the library in the process.
#pragma once

#include <cstddef>

#include "ggml-backend.h"

namespace inferos::abi {

constexpr int kApiVersion = 2;

using Unused = void (*)();

struct Backend;
struct Device;
struct Registry;

struct BackendCalls {
    const char * (*get_name)(Backend *);
    void (*free)(Backend *);
    Unused set_tensor_async, get_tensor_async, set_tensor_2d_async, get_tensor_2d_async;
    Unused cpy_tensor_async, synchronize;
    Unused graph_plan_create, graph_plan_free, graph_plan_update, graph_plan_compute;
    enum ggml_status (*graph_compute)(Backend *, ggml_cgraph *);
    Unused event_record, event_wait, graph_optimize;
};

struct Backend {
    ggml_guid_t  guid;
    BackendCalls calls;
    Device *     device;
    void *       context;
};

struct DeviceCalls {
    const char * (*get_name)(Device *);
    const char * (*get_description)(Device *);
    void (*get_memory)(Device *, size_t * free, size_t * total);
    enum ggml_backend_dev_type (*get_type)(Device *);
    void (*get_props)(Device *, ggml_backend_dev_props *);
    Backend * (*init_backend)(Device *, const char * params);
    ggml_backend_buffer_type_t (*get_buffer_type)(Device *);
    Unused get_host_buffer_type, buffer_from_host_ptr;
    bool (*supports_op)(Device *, const ggml_tensor *);
    bool (*supports_buft)(Device *, ggml_backend_buffer_type_t);
    Unused offload_op, event_new, event_free, event_synchronize;
};

struct Device {
    DeviceCalls calls;
    Registry *  registry;
    void *      context;
};

struct RegistryCalls {
    const char * (*get_name)(Registry *);
    size_t (*get_device_count)(Registry *);
    Device * (*get_device)(Registry *, size_t index);
    void * (*get_proc_address)(Registry *, const char * name);
};

struct Registry {
    int           api_version;
    RegistryCalls calls;
    void *        context;
};

// all are pointers but for the version, which alignment widens to one
static_assert(sizeof(BackendCalls) == 16 * sizeof(void *));
static_assert(sizeof(Backend) == 19 * sizeof(void *));
static_assert(offsetof(Backend, device) == 17 * sizeof(void *));
static_assert(sizeof(DeviceCalls) == 15 * sizeof(void *));
static_assert(offsetof(DeviceCalls, supports_op) == 9 * sizeof(void *));
static_assert(sizeof(Device) == 17 * sizeof(void *));
static_assert(sizeof(RegistryCalls) == 4 * sizeof(void *));
static_assert(sizeof(Registry) == 6 * sizeof(void *));

// Why the running library's structs are not these; null if they are. Looks at the CPU backend's
// own device: its functions must lie in its library, and answer as the public calls do.
const char * abi_complaint();

}  // namespace inferos::abi
