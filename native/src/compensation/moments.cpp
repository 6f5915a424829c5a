// Sums the products of every two activations that enter a weight matrix, in diagonal blocks of its
// columns. Observes a graph as activations.cpp does. Matrices with the same input share their sums.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "compensation/product.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "inferos.h"
#include "parallel.h"

namespace {

// rows of a square that are kept together, from the diagonal on
constexpr int64_t kStripe = 64;

// Where the stripe that begins at a row lies among those of a square.
int64_t stripe_at(int64_t width, int64_t row) {
    return row * width - row * (row - kStripe) / 2;
}

int64_t count_values(int64_t width) {
    const int64_t last = (width - 1) / kStripe * kStripe;
    return stripe_at(width, last) + (width - last) * (width - last);
}

struct Sums {
    int64_t             n_columns;
    int64_t             block;
    std::vector<float>  blocks;  // see inferos_moment_sums
    int64_t             n_rows = 0;
    std::string         leader;  // the matrix whose products count
    const ggml_tensor * input;   // of the leader, in the last graph
};

struct Request {
    std::string name;
    int64_t     n_columns;
    int64_t     block;
    int64_t     sums = -1;
};

}  // namespace

struct inferos_moments {
    std::vector<Request>                    requests;
    std::unordered_map<std::string, size_t> by_name;
    std::vector<Sums>                       sums;
    std::vector<float>                      copy;  // (rows, n_columns) of one input
    int32_t                                 n_threads = 1;
    int32_t                                 status    = INFEROS_OK;
    std::string                             culprit;

    Request * wanted(const ggml_tensor * node) {
        if (node->op != GGML_OP_MUL_MAT || node->src[1]->type != GGML_TYPE_F32 ||
            node->src[1]->nb[0] != sizeof(float)) {
            return nullptr;
        }
        const auto found = by_name.find(node->src[0]->name);
        return found == by_name.end() ? nullptr : &requests[found->second];
    }

    void fail(int32_t why, const std::string & name) {
        status  = why;
        culprit = name;
    }

    // The sums that a matrix adds to: those of an earlier one of the same graph if it has the same
    // input; in later graphs, those that it had.
    Sums & sums_of(Request & request, const ggml_tensor * input) {
        if (request.sums >= 0) {
            return sums[request.sums];
        }
        for (size_t i = 0; i < sums.size(); i++) {
            if (sums[i].input == input && sums[i].n_columns == request.n_columns &&
                sums[i].block == request.block) {
                request.sums = int64_t(i);
                return sums[i];
            }
        }
        const int64_t n_values = inferos_moments_values(request.n_columns, request.block);
        request.sums           = int64_t(sums.size());
        sums.push_back({request.n_columns, request.block, std::vector<float>(n_values, 0.0f), 0,
                        request.name, input});
        return sums.back();
    }

    void add(Request & request, const ggml_tensor * input) {
        if (input->ne[0] != request.n_columns) {
            return fail(INFEROS_BAD_SHAPE, request.name);
        }
        Sums & into = sums_of(request, input);
        if (into.leader != request.name) {
            return;
        }
        into.input           = input;
        const int64_t n_rows = ggml_nrows(input);
        const float * rows   = read(input);
        if (!add_rows(into, rows, n_rows)) {
            fail(INFEROS_NOT_FINITE, request.name);
        }
    }

    // (rows, columns) without gaps
    const float * read(const ggml_tensor * input) {
        const ggml_backend_buffer_t buffer =
            input->view_src ? input->view_src->buffer : input->buffer;
        const bool is_host = !buffer || ggml_backend_buffer_is_host(buffer);
        if (is_host && ggml_is_contiguous(input)) {
            return static_cast<const float *>(input->data);
        }
        const int64_t n = input->ne[0];
        copy.resize(ggml_nelements(input));
        float * to = copy.data();
        for (int64_t i3 = 0; i3 < input->ne[3]; i3++) {
            for (int64_t i2 = 0; i2 < input->ne[2]; i2++) {
                for (int64_t i1 = 0; i1 < input->ne[1]; i1++, to += n) {
                    const size_t at = i1 * input->nb[1] + i2 * input->nb[2] + i3 * input->nb[3];
                    if (is_host) {
                        memcpy(to, static_cast<const char *>(input->data) + at, n * sizeof(float));
                    } else {
                        ggml_backend_tensor_get(input, to, at, n * sizeof(float));
                    }
                }
            }
        }
        return copy.data();
    }

    // False: a value that is not finite.
    bool add_rows(Sums & into, const float * rows, int64_t n_rows) {
        const int64_t n      = into.n_columns;
        float *       square = into.blocks.data();
        bool          finite = true;
        for (int64_t from = 0; from < n; from += into.block) {
            const int64_t        width   = std::min(into.block, n - from);
            const int64_t        stripes = (width + kStripe - 1) / kStripe;
            std::atomic<int64_t> next{0};
            inferos::in_parallel(std::min<int64_t>(n_threads, stripes), [&](int64_t) {
                for (int64_t s = next++; s < stripes; s = next++) {
                    const int64_t i = s * kStripe;
                    inferos::add_product(inferos::Product<float>{
                        rows + from + i, 1, n, rows + from + i, n, 1, square + stripe_at(width, i),
                        width - i, std::min(kStripe, width - i), width - i, n_rows, 1.0f});
                }
            });
            for (int64_t i = 0; i < width; i++) {
                const int64_t top = i / kStripe * kStripe, row = i - top;
                finite = finite &&
                         std::isfinite(square[stripe_at(width, top) + row * (width - top) + row]);
            }
            square += count_values(width);
        }
        into.n_rows += n_rows;
        return finite;
    }
};

INFEROS_API int64_t inferos_moments_values(int64_t n_columns, int64_t block) {
    int64_t n_values = 0;
    for (int64_t at = 0; at < n_columns; at += block) {
        n_values += count_values(std::min(block, n_columns - at));
    }
    return n_values;
}

INFEROS_API inferos_moments * inferos_moments_create(int32_t n_threads) {
    auto * made = new (std::nothrow) inferos_moments;
    if (made) {
        made->n_threads = std::max(1, n_threads);
    }
    return made;
}

INFEROS_API void inferos_moments_destroy(inferos_moments * collector) {
    delete collector;
}

INFEROS_API int32_t inferos_moments_want(inferos_moments * collector, const char * name,
                                         int64_t n_columns, int64_t block) {
    if (n_columns < 1 || block < 1) {
        return INFEROS_BAD_SHAPE;
    }
    try {
        collector->by_name.emplace(name, collector->requests.size());
        collector->requests.push_back({name, n_columns, block, -1});
    } catch (const std::bad_alloc &) {
        return INFEROS_NO_MEMORY;
    }
    return INFEROS_OK;
}

INFEROS_API bool inferos_moments_observe(ggml_tensor * node, bool ask, void * collector) {
    auto *    self    = static_cast<inferos_moments *>(collector);
    Request * request = self->wanted(node);
    if (ask) {
        return self->status == INFEROS_OK && request;
    }
    try {
        if (request && self->status == INFEROS_OK) {
            self->add(*request, node->src[1]);
        }
    } catch (const std::exception &) {
        self->status = INFEROS_NO_MEMORY;
    }
    return true;  // false would leave the rest of the graph uncomputed without an error
}

INFEROS_API int32_t inferos_moments_status(const inferos_moments * collector) {
    return collector->status;
}

INFEROS_API const char * inferos_moments_culprit(const inferos_moments * collector) {
    return collector->culprit.c_str();
}

INFEROS_API int32_t inferos_moments_of(const inferos_moments * collector, const char * name,
                                       inferos_moment_sums * found) {
    const auto named = collector->by_name.find(name);
    if (named == collector->by_name.end() || collector->requests[named->second].sums < 0) {
        return INFEROS_BAD_ROW;
    }
    const Sums & sums = collector->sums[collector->requests[named->second].sums];
    *found = {sums.leader.c_str(), sums.blocks.data(), int64_t(sums.blocks.size()), sums.n_rows,
              kStripe};
    return INFEROS_OK;
}
