// Everything between products and attention: norms, sums, activations, rotations of positions, rows
// looked up in a table or stored in the cache. Each works on the rows of one token after another, so
// neighbours in a graph are chained: a member takes a token through all of them while it is in the
// first cache, and nobody waits in between.
#pragma once

#include "ggml.h"
#include "kernels.h"
#include "operation.h"
#include "turns.h"

namespace inferos::kernels {

// Whether this node's operation, types and shapes are known here. Depends on nothing else.
bool takes_row_operation(const ggml_tensor * op);

// What a context's chains have in common.
struct RowSettings {
    const RowKernels & kernels;
    Turns *            turns;  // of every member
    int                n_members;
    bool               erf_gelu;  // GELU by the error function, where the graph says GELU
};

// A chain of the first of these nodes, and of as many that follow as can be chained; at least one.
// n_taken: how many. Nodes that compute nothing (views) may stand between them.
Operation * make_row_chain(const RowSettings & settings, ggml_tensor * const * nodes, int n_nodes,
                           Arena & arena, int & n_taken);

// Whether nodes of this operation compute nothing: tensors that are there, and views of them.
bool is_view(ggml_op operation);

// Whether a node computes nothing: a view, an empty tensor, or one that is not asked for.
bool is_without_work(const ggml_tensor * op);

}  // namespace inferos::kernels
