// Sums the squares of the activations that enter every weight matrix. llama.cpp's scheduler asks
// for every node of the graph before it computes it and hands over the nodes that were asked for
// right after, while their sources are still in place (ggml_backend_sched_eval_callback).
#include "inferos.h"

#include <cmath>
#include <cstring>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"

namespace {

// far above any real network; keeps a collector bounded whatever it is shown
constexpr size_t kMostEntries = 1 << 16;

struct Entry {
    std::string         name;
    std::vector<double> sum_squares;  // (n_columns,)
    int64_t             n_rows = 0;
};

// A linear layer or the head: its weights are a matrix in the model file. Products of activations
// (attention scores) have a view of the cache in that place.
bool is_weight_matrix(const ggml_tensor * weight) {
    const char * name = weight->name;
    if (weight->ne[2] != 1 || weight->ne[3] != 1) {
        return false;
    }
    if (strcmp(name, "output.weight") == 0 || strcmp(name, "token_embd.weight") == 0) {
        return true;  // the second: a head that shares the embedding's weights
    }
    const size_t length = strlen(name);
    return strncmp(name, "blk.", 4) == 0 && length > 7 && strcmp(name + length - 7, ".weight") == 0;
}

bool is_wanted(const ggml_tensor * node) {
    return node->op == GGML_OP_MUL_MAT && node->src[1]->type == GGML_TYPE_F32 &&
           node->src[1]->nb[0] == sizeof(float) && is_weight_matrix(node->src[0]);
}

}  // namespace

struct inferos_activations {
    std::vector<Entry>                              entries;
    std::unordered_map<std::string, size_t>         by_name;
    std::unordered_map<const ggml_tensor *, size_t> by_weight;  // saves building a string per node
    std::vector<float>                              copy;       // where a source is not in RAM
    int32_t                                         status = INFEROS_OK;
    std::string                                     culprit;  // the matrix where it failed

    void fail(int32_t why, const ggml_tensor * weight) {
        status  = why;
        culprit = weight->name;
    }

    Entry * find(const ggml_tensor * weight, int64_t n_columns) {
        const auto known = by_weight.find(weight);
        // an address may come to mean another tensor, when a second model is observed
        if (known != by_weight.end() && entries[known->second].name == weight->name) {
            return &entries[known->second];
        }
        const auto named = by_name.find(weight->name);
        size_t     index = entries.size();
        if (named != by_name.end()) {
            index = named->second;
        } else {
            if (entries.size() >= kMostEntries) {
                return nullptr;
            }
            entries.push_back({weight->name, std::vector<double>(n_columns, 0.0), 0});
            by_name.emplace(weight->name, index);
        }
        by_weight[weight] = index;
        return &entries[index];
    }

    void add(const ggml_tensor * weight, const ggml_tensor * input) {
        const int64_t n_columns = input->ne[0];
        Entry *       entry     = find(weight, n_columns);
        if (!entry || int64_t(entry->sum_squares.size()) != n_columns) {
            fail(INFEROS_BAD_SHAPE, weight);
            return;
        }
        const char *                data = static_cast<const char *>(input->data);
        const ggml_backend_buffer_t buffer =
            input->view_src ? input->view_src->buffer : input->buffer;
        if (buffer && !ggml_backend_buffer_is_host(buffer)) {
            copy.resize((ggml_nbytes(input) + sizeof(float) - 1) / sizeof(float));
            ggml_backend_tensor_get(input, copy.data(), 0, ggml_nbytes(input));
            data = reinterpret_cast<const char *>(copy.data());
        }
        double * sums = entry->sum_squares.data();
        for (int64_t i3 = 0; i3 < input->ne[3]; i3++) {
            for (int64_t i2 = 0; i2 < input->ne[2]; i2++) {
                for (int64_t i1 = 0; i1 < input->ne[1]; i1++) {
                    const auto * row = reinterpret_cast<const float *>(
                        data + i1 * input->nb[1] + i2 * input->nb[2] + i3 * input->nb[3]);
                    for (int64_t i = 0; i < n_columns; i++) {
                        sums[i] += double(row[i]) * row[i];
                    }
                }
            }
        }
        entry->n_rows += ggml_nrows(input);
        double total = 0;
        for (int64_t i = 0; i < n_columns; i++) {
            total += sums[i];
        }
        if (!std::isfinite(total)) {
            fail(INFEROS_NOT_FINITE, weight);
        }
    }
};

INFEROS_API inferos_activations * inferos_activations_create(void) {
    return new (std::nothrow) inferos_activations;
}

INFEROS_API void inferos_activations_destroy(inferos_activations * collector) {
    delete collector;
}

INFEROS_API bool inferos_activations_observe(ggml_tensor * node, bool ask, void * collector) {
    auto * self = static_cast<inferos_activations *>(collector);
    if (ask) {
        return self->status == INFEROS_OK && is_wanted(node);
    }
    try {
        self->add(node->src[0], node->src[1]);
    } catch (const std::bad_alloc &) {
        self->status = INFEROS_NO_MEMORY;
    }
    return true;  // false would leave the rest of the graph uncomputed without an error
}

INFEROS_API int32_t inferos_activations_status(const inferos_activations * collector) {
    return collector->status;
}

INFEROS_API const char * inferos_activations_culprit(const inferos_activations * collector) {
    return collector->culprit.c_str();
}

INFEROS_API int64_t inferos_activations_n_entries(const inferos_activations * collector) {
    return int64_t(collector->entries.size());
}

INFEROS_API int32_t inferos_activations_entry(const inferos_activations * collector, int64_t index,
                                              inferos_activation_sums * entry) {
    if (index < 0 || index >= int64_t(collector->entries.size())) {
        return INFEROS_BAD_ROW;
    }
    const Entry & found = collector->entries[index];
    *entry = {found.name.c_str(), found.sum_squares.data(), int64_t(found.sum_squares.size()),
              found.n_rows};
    return INFEROS_OK;
}
