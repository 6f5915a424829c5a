// The C interface of infer-os's own native library. Every function is plain C, throws nothing and
// reports failure through its return value, so that ctypes can call it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define INFEROS_API extern "C" __attribute__((visibility("default")))

// ---- build_info.cpp -------------------------------------------------------------------------

// What this library was compiled against and what it found in the process. The Python side
// compares the two halves before it calls anything else.
struct inferos_build_info {
    const char * ggml_version_built;
    const char * ggml_version_loaded;
    const char * libllama_path;  // file that provides llama_decode in this process
    uint64_t     sizeof_model_params;
    uint64_t     sizeof_context_params;
    uint64_t     sizeof_batch;
};

INFEROS_API void inferos_get_build_info(inferos_build_info * info);

// ---- interrupt.cpp --------------------------------------------------------------------------

// Makes SIGINT visible inside a running llama_decode: the handler raises a flag that
// inferos_interrupt_requested (an ggml_abort_callback) reads, then calls the handler that was
// installed before, so that Python's own handling goes on unchanged.
INFEROS_API int32_t inferos_interrupt_install(void);
INFEROS_API int32_t inferos_interrupt_restore(void);
INFEROS_API void    inferos_interrupt_set(int32_t value);
INFEROS_API bool    inferos_interrupt_requested(void * unused);

// ---- quantize.cpp ---------------------------------------------------------------------------

struct inferos_quantize_job {
    const void    * src;         // rows of src_type, contiguous, (n_src_rows, n_per_row)
    const int64_t * row_order;   // output row i is source row row_order[i]; null: in order
    const float   * importance;  // (n_per_row,) weight of each column's error, or null
    void          * dst;         // (n_rows, ggml_row_size(dst_type, n_per_row))
    int64_t         n_rows;
    int64_t         n_src_rows;
    int64_t         n_per_row;
    int32_t         src_type;    // GGML_TYPE_F32, GGML_TYPE_F16 or GGML_TYPE_BF16
    int32_t         dst_type;    // any ggml type that ggml_quantize_chunk writes
    int32_t         n_threads;
};

// What quantization did to the values: filled when asked for, at the price of reading back dst.
struct inferos_quantize_error {
    double  sum_squared_error;
    double  sum_squared_value;
    double  max_abs_error;
    int64_t n_not_finite;  // NaN or infinity in the source
};

enum inferos_status {
    INFEROS_OK               = 0,
    INFEROS_BAD_TYPE         = 1,  // a source or target type that cannot be handled
    INFEROS_BAD_SHAPE        = 2,  // n_per_row is no multiple of the target's block size
    INFEROS_BAD_ROW          = 3,  // a row index outside the source
    INFEROS_NEEDS_IMPORTANCE = 4,  // the target type cannot be written without weights
    INFEROS_NO_MEMORY        = 5,
};

INFEROS_API int32_t inferos_quantize_rows(const inferos_quantize_job * job,
                                          inferos_quantize_error * error);
