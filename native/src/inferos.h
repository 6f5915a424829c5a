// The C interface of infer-os's own native library. Every function is plain C, throws nothing and
// reports failure through its return value, so that ctypes can call it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define INFEROS_API extern "C" __attribute__((visibility("default")))

// ---- build_info.cpp -------------------------------------------------------------------------

// The start of the SHA-256 of this file, as it was when the library was built. Python calls nothing
// else before it has compared it with the hash of the header that native/abi.py was written for;
// this function never changes.
INFEROS_API const char * inferos_header_hash(void);

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
// installed before, so that Python's own handling goes on unchanged. SIGTERM and SIGHUP likewise,
// where the program handles them.
INFEROS_API int32_t inferos_interrupt_install(void);
INFEROS_API int32_t inferos_interrupt_restore(void);
INFEROS_API void inferos_interrupt_set(int32_t value);
INFEROS_API bool inferos_interrupt_requested(void * unused);

// ---- quantize.cpp ---------------------------------------------------------------------------

struct inferos_quantize_job {
    const void *    src;         // rows of src_type, contiguous, (n_src_rows, n_per_row)
    const int64_t * row_order;   // output row i is source row row_order[i]; null: in order
    const float *   importance;  // (n_per_row,) weight of each column's error, or null
    void *          dst;         // (n_rows, ggml_row_size(dst_type, n_per_row))
    const float *   left;        // (n_src_rows, rank): left @ right is added to the rows first
    const float *   right;       // (rank, n_per_row); both are null if rank is 0
    int64_t         rank;
    int64_t         n_rows;
    int64_t         n_src_rows;
    int64_t         n_per_row;
    int32_t         src_type;  // GGML_TYPE_F32, GGML_TYPE_F16 or GGML_TYPE_BF16
    int32_t         dst_type;  // any ggml type that ggml_quantize_chunk writes
    int32_t         n_threads;
    int32_t         kernel;  // inferos_kernel; all write the same bytes
};

// What quantizes rows. The named ones exist for q3_K, q4_K, q5_K and q6_K, where the CPU has them.
enum inferos_kernel {
    INFEROS_KERNEL_BEST     = 0,  // inferos_best_kernel() where it has the type, else ggml
    INFEROS_KERNEL_GGML     = 1,
    INFEROS_KERNEL_BASELINE = 2,
    INFEROS_KERNEL_AVX2     = 3,
    INFEROS_KERNEL_AVX512   = 4,
};

// What quantization did to the values: filled when asked for, at the price of reading back dst.
struct inferos_quantize_error {
    double  sum_squared_error;
    double  sum_squared_value;
    double  max_abs_error;
    int64_t n_not_finite;  // NaN, infinity, or too large for the target; their rows become zeros
};

enum inferos_status {
    INFEROS_OK               = 0,
    INFEROS_BAD_TYPE         = 1,  // a source or target type that cannot be handled
    INFEROS_BAD_SHAPE        = 2,  // n_per_row is no multiple of the target's block size
    INFEROS_BAD_ROW          = 3,  // a row index outside the source
    INFEROS_NEEDS_IMPORTANCE = 4,  // the target type cannot be written without weights
    INFEROS_NO_MEMORY        = 5,
    INFEROS_NOT_FINITE       = 6,  // a computed value is NaN or infinite
    INFEROS_NO_KERNEL        = 7,  // this build or CPU lacks the kernel, or it the target type
    INFEROS_UNKNOWN_LLAMA    = 8,  // what llama.cpp says of itself is missing or cannot be true
};

INFEROS_API int32_t inferos_quantize_rows(const inferos_quantize_job * job,
                                          inferos_quantize_error *     error);

// ---- kquants.cpp ----------------------------------------------------------------------------

// The widest kernel that this CPU has; ggml, if the loaded one was compiled to round otherwise.
INFEROS_API int32_t inferos_best_kernel(void);

// ---- activations.cpp ------------------------------------------------------------------------

struct ggml_tensor;

// Sums the squares of what enters every weight matrix while a context decodes. One collector
// serves one context at a time.
struct inferos_activations;

// What entered one matrix. The pointers stay valid until the collector observes again or ends.
struct inferos_activation_sums {
    const char *   name;         // of the weight matrix
    const double * sum_squares;  // (n_columns,)
    int64_t        n_columns;
    int64_t        n_rows;  // rows that were summed
};

INFEROS_API inferos_activations * inferos_activations_create(void);  // null: no memory
INFEROS_API void inferos_activations_destroy(inferos_activations * collector);

// A ggml_backend_sched_eval_callback whose user_data is the collector.
INFEROS_API bool inferos_activations_observe(ggml_tensor * node, bool ask, void * collector);

// INFEROS_OK, or the first thing that went wrong while observing and the matrix where it did;
// nothing is summed after it.
INFEROS_API int32_t inferos_activations_status(const inferos_activations * collector);
INFEROS_API const char * inferos_activations_culprit(const inferos_activations * collector);
INFEROS_API int64_t inferos_activations_n_entries(const inferos_activations * collector);
INFEROS_API int32_t inferos_activations_entry(const inferos_activations * collector, int64_t index,
                                              inferos_activation_sums * entry);

// ---- compensation/moments.cpp ---------------------------------------------------------------

// Sums the products of every two activations that enter the wanted weight matrices while a context
// decodes. One collector serves one context at a time.
struct inferos_moments;

struct inferos_moment_sums {
    const char *  leader;  // the first of the matrices that have this input
    const float * blocks;  // of each block of columns, its stripes: some rows, from the diagonal on
    int64_t       n_values;
    int64_t       n_rows;  // rows that were summed
    int64_t       stripe;  // rows of a stripe; the last one of a block may have fewer
};

// How many values that takes for a matrix whose columns are cut into blocks of so many.
INFEROS_API int64_t inferos_moments_values(int64_t n_columns, int64_t block);

INFEROS_API inferos_moments * inferos_moments_create(int32_t n_threads);  // null: no memory
INFEROS_API void inferos_moments_destroy(inferos_moments * collector);

// Asks for a matrix before the first decode; its columns are cut into blocks of so many.
INFEROS_API int32_t inferos_moments_want(inferos_moments * collector, const char * name,
                                         int64_t n_columns, int64_t block);

// A ggml_backend_sched_eval_callback whose user_data is the collector.
INFEROS_API bool inferos_moments_observe(ggml_tensor * node, bool ask, void * collector);

// As for inferos_activations.
INFEROS_API int32_t inferos_moments_status(const inferos_moments * collector);
INFEROS_API const char * inferos_moments_culprit(const inferos_moments * collector);

// The pointers stay valid until the collector observes again or ends. INFEROS_BAD_ROW: no such
// matrix, or no graph had it.
INFEROS_API int32_t inferos_moments_of(const inferos_moments * collector, const char * name,
                                       inferos_moment_sums * found);

// ---- compensation/feedback.cpp --------------------------------------------------------------

// What a sweep needs of the second moments (n, n) of a block of columns, of which the upper half is
// read: feedback (n, n), and importance (n,), the cost of an error of each column once those behind it
// have made up for it. damping: the share of the mean of the diagonal that is added to the diagonal,
// ten times as much if the factor does not exist, and so on; returns what it took. damped (n, n):
// what was factored, both halves.
// INFEROS_NOT_FINITE: none of it worked.
INFEROS_API int32_t inferos_feedback(const float * moments, int64_t n, int32_t n_threads,
                                     float * feedback, float * importance, double * damping,
                                     float * damped);

// ---- compensation/sweep.cpp -----------------------------------------------------------------

struct inferos_compensate_job {
    const float *   rows;        // (n_rows, n_per_row)
    const float *   feedback;    // of inferos_feedback, block after block
    const float *   importance;  // (n_per_row,) weights for the choice of scales
    const int64_t * widths;      // (n_blocks,) columns of each block
    const float *   moments;     // damped, block after block; null: nothing is refined
    void *          dst;         // (n_rows, ggml_row_size(dst_type, n_per_row))
    int64_t         n_blocks;
    int64_t         n_rows;
    int64_t         n_per_row;
    int32_t         dst_type;
    int32_t         n_threads;
    int32_t         refinements;  // how often scales and codes are chosen again
};

// Whether a ggml type can be written so.
INFEROS_API int32_t inferos_compensates(int32_t type);

INFEROS_API int32_t inferos_compensate_rows(const inferos_compensate_job * job,
                                            inferos_quantize_error *       error);

// ---- evaluate.cpp ---------------------------------------------------------------------------

struct inferos_score_job {
    const float *   reference;  // (n_rows, n_vocab) logits
    const float *   candidate;  // likewise; null: score the reference alone
    const int32_t * targets;    // (n_scores,) the tokens whose probabilities are wanted
    const int32_t * rows;       // (n_scores,) the row that each follows; null: 0, 1, 2, ...
    int64_t         n_scores;
    int64_t         n_rows;
    int64_t         n_vocab;
    int32_t         n_threads;
};

struct inferos_row_score {
    double  reference_log_prob;  // of the target, natural logarithm
    double  candidate_log_prob;
    double  kl;             // KL(reference || candidate) in nats
    int32_t reference_top;  // likeliest token
    int32_t candidate_top;
};

// Scores targets in double precision. INFEROS_BAD_ROW: a target outside the vocabulary, or a row
// that there is not.
INFEROS_API int32_t inferos_score_rows(const inferos_score_job * job, inferos_row_score * scores);

// ---- probes.cpp -----------------------------------------------------------------------------

// Reads n_bytes of memory over and over on n_threads for about that many seconds; the best pass
// counts, since other work only makes one slower. n_bytes should be far larger than the caches.
INFEROS_API int32_t inferos_read_bandwidth(uint64_t n_bytes, int32_t n_threads, double seconds,
                                           double * bytes_per_s);

// Multiply-adds of bytes per second on n_threads together, the best of the passes in so many seconds:
// what the instructions of our kernels do from registers or, if scaled is not 0, their innermost
// loop with its scales from the first cache. INFEROS_NO_KERNEL: none run on this CPU.
INFEROS_API int32_t inferos_multiply_rate(int32_t n_threads, double seconds, int32_t scaled,
                                          double * per_s);

// Of n_threads, how many this process can have at once, the calling one included.
INFEROS_API int32_t inferos_possible_threads(int32_t n_threads);

// ---- memory.cpp -----------------------------------------------------------------------------

struct llama_context;

// Bytes of the buffers that llama.cpp holds for a context and its model.
struct inferos_buffers {
    uint64_t model;    // weights; a mapped file counts whole
    uint64_t context;  // KV cache
    uint64_t compute;  // intermediate values of the largest graph
};

// INFEROS_UNKNOWN_LLAMA: this llama.cpp does not say them, or not as the pinned one does.
INFEROS_API int32_t inferos_context_buffers(const llama_context * context,
                                            inferos_buffers *     buffers);

// Bytes of a part of a file that are in the page cache, by mincore(2). The kernel tells it only to
// those who own the file or may write it; to others every page seems resident. Returns 0 or errno.
INFEROS_API int32_t inferos_file_residency(const char * path, uint64_t offset, uint64_t length,
                                           uint64_t * resident);

// ---- mapping_guard.cpp ----------------------------------------------------------------------

// Watches an open file: from now on, reading a mapping of it that has shrunk, or whose disk fails,
// gives zeros and sets *inferos_guard_damaged(watch) to 1, where it would end the process with
// SIGBUS. The descriptor may be closed. -1: it cannot be watched here.
INFEROS_API int32_t inferos_guard_watch(int32_t file);
INFEROS_API const int32_t * inferos_guard_damaged(int32_t watch);
INFEROS_API void inferos_guard_release(int32_t watch);

// ---- layouts.cpp ----------------------------------------------------------------------------

// Multiplies in every layout of weights that llama.cpp has besides the file's own. INFEROS_OK, or
// another status if a product is wrong; where the code of one cannot run here, the process ends.
INFEROS_API int32_t inferos_try_layouts(void);

// ---- kv_state.cpp ---------------------------------------------------------------------------

// Rows of one layer's K or V. A rotation is the size of the Walsh-Hadamard matrix that the rows are
// multiplied by, run after run; 0 is none.
struct inferos_kv_part {
    const void * src;  // (n_rows, ggml_row_size(src_type, n_per_row)), at even addresses
    void *       dst;  // (n_rows, ggml_row_size(dst_type, n_per_row)), likewise
    int64_t      n_rows;
    int64_t      n_per_row;
    int32_t      src_type;  // F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0
    int32_t      dst_type;
    int32_t      src_rotation;
    int32_t      dst_rotation;
};

// Re-encodes all parts on up to n_threads threads, each with one row of float32 as scratch.
INFEROS_API int32_t inferos_kv_reencode(const inferos_kv_part * parts, int64_t n_parts,
                                        int32_t n_threads);

// ---- kernels/backend.cpp --------------------------------------------------------------------

// Why the kernels cannot be used in this process; empty if they can.
INFEROS_API const char * inferos_kernels_complaint(void);

// Makes them known to llama.cpp, through ggml_backend_load of this library; the same answer.
INFEROS_API const char * inferos_kernels_start(void);

// The variant in use, by its instruction set, and whether it takes weights of a ggml type.
INFEROS_API const char * inferos_kernels_name(void);
INFEROS_API int32_t inferos_kernels_takes(int32_t type);

// Whether this CPU has AMX's products of bytes.
INFEROS_API int32_t inferos_has_amx(void);

// Multiplies weights of every type that a variant takes, and compares the products with those of the
// portable path. INFEROS_OK, INFEROS_NO_KERNEL if there is no such variant here, or another status if
// one is wrong; where its instructions cannot run, the process ends.
INFEROS_API int32_t inferos_kernels_try(const char * variant);

// Uses a variant from now on. INFEROS_NO_KERNEL: it does not run here.
INFEROS_API int32_t inferos_kernels_choose(const char * variant);

// Contexts that this thread creates from now on leave everything to llama.cpp (0), use the kernels
// (1), use them and compute products of other weights with a few columns as those with one (2), or
// compute every node with them, for models that have only weights which they take (3; 4: whose GELU
// is the one by the error function).
INFEROS_API void inferos_kernels_switch(int32_t use);

// Contexts that this thread creates from now on have layers that see only the last windows[layer]
// tokens, the query's own among them; 0: all. Their masks must hold distances, as llama.cpp fills
// them for ALiBi, which is not applied. n_layers 0: no such layers, and masks are what graphs say.
INFEROS_API int32_t inferos_kernels_windows(int32_t n_layers, const int32_t * windows);

// How the kernels' threads fared in this process: the share of steps in which a thread was left out,
// since fewer were faster beside other programs.
INFEROS_API double inferos_kernels_left_out(void);

// Columns of such a product at most, and whether weights of a ggml_type have them.
INFEROS_API int32_t inferos_kernels_most_columns(void);
INFEROS_API int32_t inferos_kernels_takes_columns(int32_t type);

// One product, for tests and benchmarks: out (n_columns, n_rows) = x (n_columns, n_per_row) times
// the transposed weights, rows of a ggml type.
struct inferos_mul_mat {
    const void *  weights;  // (n_rows, row_bytes)
    const float * x;
    float *       out;
    int64_t       n_rows;  // at least 16
    int64_t       n_per_row;
    int64_t       n_columns;
    int64_t       row_bytes;
    int32_t       type;
    int32_t       n_threads;
};

// variant: "portable", or one that this CPU runs; INFEROS_BAD_TYPE: it does not.
INFEROS_API int32_t inferos_kernels_mul_mat(const char * variant, const inferos_mul_mat * job);
