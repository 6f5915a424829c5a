// Nodes can be chained if what one writes for a token is read for that token alone. Tensors are
// compared by their memory, since ggml reuses that of tensors which are no longer needed: for any
// two uses of which one writes, either the memory is apart, or token t of one touches only that of
// token t of the other.
#include "row_chain.h"

#include "cache_rows.h"

#include <cmath>
#include <cstring>

#include "ggml-cpu.h"

namespace inferos::kernels {
namespace {

constexpr int     kMostSteps = 24;  // of a chain
constexpr int     kMostUses  = 4 * kMostSteps;
constexpr int64_t kRowUnit   = 16;  // the kernels' rows are multiples of it

int64_t n_rows_of(const ggml_tensor * t) {
    return t->ne[1] * t->ne[2] * t->ne[3];
}

template <class Value> Value parameter(const ggml_tensor * op, int i) {
    Value value;
    std::memcpy(&value, reinterpret_cast<const uint8_t *>(op->op_params) + 4 * i, sizeof(value));
    return value;
}

bool is_float_rows(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float);
}

bool is_one_row(const ggml_tensor * t) {
    return n_rows_of(t) == 1;
}

// ---- what is taken

bool takes_binary(const ggml_tensor * op) {
    const ggml_tensor *a = op->src[0], *b = op->src[1];
    return is_float_rows(op) && is_float_rows(a) && is_float_rows(b) &&
           ggml_are_same_shape(op, a) && b->ne[0] == a->ne[0] && a->ne[0] % kRowUnit == 0 &&
           (is_one_row(b) || ggml_are_same_shape(a, b));
}

bool takes_unary(const ggml_tensor * op) {
    return is_float_rows(op) && is_float_rows(op->src[0]) && ggml_are_same_shape(op, op->src[0]) &&
           op->ne[0] % kRowUnit == 0;
}

// Of the ways to scale positions, the linear one.
bool takes_rope(const ggml_tensor * op) {
    const int32_t n_turned = parameter<int32_t>(op, 1), mode = parameter<int32_t>(op, 2);
    return is_float_rows(op) && is_float_rows(op->src[0]) && ggml_are_same_shape(op, op->src[0]) &&
           op->src[1]->type == GGML_TYPE_I32 && ggml_is_contiguous(op->src[1]) &&
           op->src[1]->ne[0] == op->ne[2] && op->ne[3] == 1 && op->src[2] == nullptr &&
           (mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX) && n_turned > 0 &&
           n_turned % 2 == 0 && n_turned <= op->ne[0] && n_turned / 2 <= kMostPairs &&
           parameter<float>(op, 7) == 0.0f && parameter<int32_t>(op, 15) == 0;
}

bool is_list(const ggml_tensor * t) {
    return (t->type == GGML_TYPE_I32 || t->type == GGML_TYPE_I64) && is_one_row(t) &&
           ggml_is_contiguous(t);
}

bool takes_get_rows(const ggml_tensor * op) {
    const ggml_tensor *table = op->src[0], *rows = op->src[1];
    return is_float_rows(op) && rows->type == GGML_TYPE_I32 && is_list(rows) &&
           op->ne[1] == rows->ne[0] && op->ne[2] == 1 && op->ne[3] == 1 && table->ne[2] == 1 &&
           table->ne[3] == 1 && table->nb[0] == ggml_type_size(table->type) &&
           (table->type == GGML_TYPE_F32 || ggml_get_type_traits(table->type)->to_float != nullptr);
}

bool takes_set_rows(const ggml_tensor * op) {
    const ggml_tensor *values = op->src[0], *rows = op->src[1];
    return is_float_rows(values) && is_list(rows) && values->ne[1] == rows->ne[0] &&
           values->ne[2] == 1 && values->ne[3] == 1 && op->ne[0] == values->ne[0] &&
           op->ne[2] == 1 && op->ne[3] == 1 && op->nb[0] == ggml_type_size(op->type) &&
           (op->type == GGML_TYPE_F32 || ggml_get_type_traits_cpu(op->type)->from_float != nullptr);
}

// The rotation of a quantized cache: its matrix is Hadamard's, as the node says.
bool takes_hadamard(const ggml_tensor * op) {
    const ggml_tensor *matrix = op->src[0], *x = op->src[1];
    const int64_t      n = op->ne[0];
    return parameter<int32_t>(op, 1) == GGML_HINT_SRC0_IS_HADAMARD && is_float_rows(op) &&
           is_float_rows(x) && ggml_are_same_shape(op, x) && matrix->ne[0] == n &&
           matrix->ne[1] == n && is_one_row(matrix) == (n == 1) && n % kRowUnit == 0 &&
           (n & (n - 1)) == 0;
}

// ---- memory

// What an operation touches of a tensor: n_bytes from start + t * stride for token t; any token may
// touch all of it if the stride is 0.
struct Touch {
    const uint8_t * start;
    size_t          n_bytes;
    size_t          stride;
    int64_t         n_tokens;
    bool            is_write;

    const uint8_t * end() const {
        return start + stride * static_cast<size_t>(n_tokens - 1) + n_bytes;
    }
};

// Whether token t of one touches nothing of the other that another token touches.
bool are_apart(const Touch & a, const Touch & b) {
    if ((!a.is_write && !b.is_write) || a.end() <= b.start || b.end() <= a.start) {
        return true;
    }
    return (a.stride != 0 && a.stride == b.stride && a.start + a.n_bytes <= b.start + b.stride &&
            b.start + b.n_bytes <= a.start + a.stride);
}

// The rows of a tensor by tokens: each has as many that follow each other.
bool touch_rows(const ggml_tensor * t, int64_t n_tokens, bool is_write, Touch & touch) {
    const int64_t n_rows = n_rows_of(t);
    if (n_rows % n_tokens != 0) {
        return false;
    }
    const int64_t each  = n_rows / n_tokens;
    size_t        bytes = ggml_row_size(t->type, t->ne[0]);  // of a token
    size_t        stride;
    if (each % (t->ne[1] * t->ne[2]) == 0) {
        bytes += static_cast<size_t>(t->ne[1] - 1) * t->nb[1] +
                 static_cast<size_t>(t->ne[2] - 1) * t->nb[2] +
                 static_cast<size_t>(each / (t->ne[1] * t->ne[2]) - 1) * t->nb[3];
        stride = static_cast<size_t>(each / (t->ne[1] * t->ne[2])) * t->nb[3];
    } else if (t->ne[3] == 1 && each % t->ne[1] == 0) {
        bytes += static_cast<size_t>(t->ne[1] - 1) * t->nb[1] +
                 static_cast<size_t>(each / t->ne[1] - 1) * t->nb[2];
        stride = static_cast<size_t>(each / t->ne[1]) * t->nb[2];
    } else if (t->ne[2] == 1 && t->ne[3] == 1) {
        bytes += static_cast<size_t>(each - 1) * t->nb[1];
        stride = static_cast<size_t>(each) * t->nb[1];
    } else {
        return false;
    }
    touch = {static_cast<const uint8_t *>(t->data), bytes, stride, n_tokens, is_write};
    return bytes <= stride || n_tokens == 1;
}

Touch touch_all(const ggml_tensor * t, bool is_write) {
    return {static_cast<const uint8_t *>(t->data), ggml_nbytes(t), 0, 1, is_write};
}

// ---- rows

const uint8_t * row_at(const ggml_tensor * t, int64_t r) {
    const int64_t i1 = r % t->ne[1], rest = r / t->ne[1];
    return static_cast<const uint8_t *>(t->data) + static_cast<size_t>(i1) * t->nb[1] +
           static_cast<size_t>(rest % t->ne[2]) * t->nb[2] +
           static_cast<size_t>(rest / t->ne[2]) * t->nb[3];
}

const float * read_row(const ggml_tensor * t, int64_t r) {
    return reinterpret_cast<const float *>(row_at(t, is_one_row(t) ? 0 : r));
}

float * write_row(const ggml_tensor * t, int64_t r) {
    return reinterpret_cast<float *>(const_cast<uint8_t *>(row_at(t, r)));
}

int64_t listed(const ggml_tensor * list, int64_t i) {
    return list->type == GGML_TYPE_I64 ? static_cast<const int64_t *>(list->data)[i]
                                       : static_cast<const int32_t *>(list->data)[i];
}

// ---- the chain

enum class Kind : int32_t { kNorm, kAdd, kMul, kDiv, kScale, kGelu, kRope, kHadamard, kGet, kSet };

bool kind_of(const ggml_tensor * op, Kind & kind) {
    switch (op->op) {
        case GGML_OP_NORM: kind = Kind::kNorm; return takes_unary(op);
        case GGML_OP_ADD: kind = Kind::kAdd; return takes_binary(op);
        case GGML_OP_MUL: kind = Kind::kMul; return takes_binary(op);
        case GGML_OP_DIV: kind = Kind::kDiv; return takes_binary(op);
        case GGML_OP_SCALE: kind = Kind::kScale; return takes_unary(op);
        case GGML_OP_UNARY:
            kind = Kind::kGelu;
            return ggml_get_unary_op(op) == GGML_UNARY_OP_GELU && takes_unary(op);
        case GGML_OP_ROPE: kind = Kind::kRope; return takes_rope(op);
        case GGML_OP_MUL_MAT: kind = Kind::kHadamard; return takes_hadamard(op);
        case GGML_OP_GET_ROWS: kind = Kind::kGet; return takes_get_rows(op);
        case GGML_OP_SET_ROWS: kind = Kind::kSet; return takes_set_rows(op);
        default: return false;
    }
}

class RowChain final : public Operation {
  public:
    RowChain(const RowSettings & settings, int64_t n_tokens)
        : Operation(0), kernels_(settings.kernels), turns_(settings.turns),
          gelu_(settings.erf_gelu ? kernels_.gelu_erf : kernels_.gelu), n_tokens_(n_tokens),
          tokens_(n_tokens, settings.n_members) {}

    // False: it cannot be chained with what is here already.
    bool append(const ggml_tensor * op, Kind kind) {
        Touch touches[4];
        int   n_touches = 0;
        if (n_steps_ == kMostSteps || !touched(op, kind, touches, n_touches)) {
            return false;
        }
        for (int i = 0; i < n_touches && n_tokens_ > 1; i++) {
            for (int j = 0; j < n_uses_; j++) {
                if (!are_apart(uses_[j], touches[i])) {
                    return false;
                }
            }
        }
        std::memcpy(uses_ + n_uses_, touches, static_cast<size_t>(n_touches) * sizeof(Touch));
        n_uses_ += n_touches;
        steps_[n_steps_++] = {op, kind, rows_of(op, kind) / n_tokens_};
        return true;
    }

    // The tokens of a node that is the first of a chain.
    static int64_t tokens_of(const ggml_tensor * op, Kind kind) {
        const int64_t n = rows_of(op, kind);
        return kind == Kind::kRope || op->ne[2] > 1 ? op->ne[2] * op->ne[3] : n;
    }

    void place(uint8_t *) override {}

    void work(const Member & me) override {
        Turns & turns = turns_[me.index];
        tokens_.run(me, [&](int64_t token) {
            for (int i = 0; i < n_steps_; i++) {
                const Step & step = steps_[i];
                for (int64_t r = token * step.n_rows; r < (token + 1) * step.n_rows; r++) {
                    compute_row(step, r, turns);
                }
            }
        });
    }

  private:
    struct Step {
        const ggml_tensor * op;
        Kind                kind;
        int64_t             n_rows;  // of a token
    };

    static int64_t rows_of(const ggml_tensor * op, Kind kind) {
        return kind == Kind::kSet ? op->src[1]->ne[0] : n_rows_of(op);
    }

    // What a node touches; false: its rows are not those of tokens.
    bool touched(const ggml_tensor * op, Kind kind, Touch * touches, int & n) const {
        const auto rows = [&](const ggml_tensor * t, bool is_write) {
            return touch_rows(t, n_tokens_, is_write, touches[n++]);
        };
        switch (kind) {
            case Kind::kGet:
                touches[n++] = touch_all(op->src[0], false);
                return rows_of(op, kind) % n_tokens_ == 0 && rows(op, true);
            case Kind::kSet:
                touches[n++] = touch_all(op, true);
                return rows_of(op, kind) % n_tokens_ == 0 && rows(op->src[0], false);
            case Kind::kAdd:
            case Kind::kMul:
            case Kind::kDiv:
                if (is_one_row(op->src[1])) {
                    touches[n++] = touch_all(op->src[1], false);
                } else if (!rows(op->src[1], false)) {
                    return false;
                }
                break;
            default: break;
        }
        return rows(op->src[0 + (kind == Kind::kHadamard)], false) && rows(op, true);
    }

    void compute_row(const Step & step, int64_t r, Turns & turns) const {
        const ggml_tensor * op = step.op;
        const int64_t       n  = op->ne[0];
        switch (step.kind) {
            case Kind::kNorm:
                kernels_.norm(n, read_row(op->src[0], r), parameter<float>(op, 0),
                              write_row(op, r));
                break;
            case Kind::kAdd:
                kernels_.add(n, read_row(op->src[0], r), read_row(op->src[1], r), write_row(op, r));
                break;
            case Kind::kMul:
                kernels_.mul(n, read_row(op->src[0], r), read_row(op->src[1], r), write_row(op, r));
                break;
            case Kind::kDiv:
                kernels_.div(n, read_row(op->src[0], r), read_row(op->src[1], r), write_row(op, r));
                break;
            case Kind::kScale:
                kernels_.scale(n, read_row(op->src[0], r), parameter<float>(op, 0),
                               parameter<float>(op, 1), write_row(op, r));
                break;
            case Kind::kGelu: gelu_(n, read_row(op->src[0], r), write_row(op, r)); break;
            case Kind::kHadamard:
                kernels_.hadamard(n, read_row(op->src[1], r), write_row(op, r));
                break;
            case Kind::kRope: rotate(op, r, turns); break;
            case Kind::kGet: get(op, r); break;
            case Kind::kSet: set(op, r); break;
        }
    }

    void rotate(const ggml_tensor * op, int64_t r, Turns & turns) const {
        const int32_t n_turned = parameter<int32_t>(op, 1), n_pairs = n_turned / 2;
        const int32_t position = static_cast<const int32_t *>(op->src[1]->data)[r / op->ne[1]];
        const auto &  turn     = turns.at(
            {n_pairs, parameter<float>(op, 5), parameter<float>(op, 6), parameter<float>(op, 8)},
            position);
        const float * x = read_row(op->src[0], r);
        float *       y = write_row(op, r);
        if (parameter<int32_t>(op, 2) == GGML_ROPE_TYPE_NEOX) {
            kernels_.rotate(n_pairs, x, turn.cosines, turn.sines, y);
        } else {
            for (int32_t i = 0; i < n_pairs; i++) {  // pairs of neighbours
                const float a = x[2 * i], b = x[2 * i + 1];
                y[2 * i]     = a * turn.cosines[i] - b * turn.sines[i];
                y[2 * i + 1] = a * turn.sines[i] + b * turn.cosines[i];
            }
        }
        if (x != y) {
            std::memcpy(y + n_turned, x + n_turned,
                        static_cast<size_t>(op->ne[0] - n_turned) * sizeof(float));
        }
    }

    static void get(const ggml_tensor * op, int64_t r) {
        const ggml_tensor * table = op->src[0];
        const int64_t       row   = listed(op->src[1], r);
        if (row < 0 ||
            row >= table->ne[1]) {  // llama.cpp has checked tokens; nothing else is asked
            std::memset(write_row(op, r), 0, static_cast<size_t>(op->ne[0]) * sizeof(float));
        } else if (table->type == GGML_TYPE_F32) {
            std::memcpy(write_row(op, r), row_at(table, row),
                        static_cast<size_t>(op->ne[0]) * sizeof(float));
        } else {
            ggml_get_type_traits(table->type)
                ->to_float(row_at(table, row), write_row(op, r), op->ne[0]);
        }
    }

    static void set(const ggml_tensor * op, int64_t r) {
        const int64_t row = listed(op->src[1], r);
        if (row < 0 || row >= op->ne[1]) {
            return;
        }
        auto *        to   = const_cast<uint8_t *>(row_at(op, row));
        const float * from = read_row(op->src[0], r);
        narrow_cache_row(from, op->type, to, op->ne[0]);
    }

    const RowKernels &               kernels_;
    Turns * const                    turns_;
    decltype(RowKernels::gelu) const gelu_;
    const int64_t                    n_tokens_;
    int                              n_steps_ = 0, n_uses_ = 0;
    Step                             steps_[kMostSteps];
    Touch                            uses_[kMostUses];
    Pieces                           tokens_;
};

}  // namespace

bool takes_row_operation(const ggml_tensor * op) {
    Kind kind;
    return kind_of(op, kind);
}

bool is_view(ggml_op operation) {
    return operation == GGML_OP_NONE || operation == GGML_OP_RESHAPE || operation == GGML_OP_VIEW ||
           operation == GGML_OP_PERMUTE || operation == GGML_OP_TRANSPOSE;
}

bool is_without_work(const ggml_tensor * op) {
    return is_view(op->op) || ggml_is_empty(op) || (op->flags & GGML_TENSOR_FLAG_COMPUTE) == 0;
}

Operation * make_row_chain(const RowSettings & settings, ggml_tensor * const * nodes, int n_nodes,
                           Arena & arena, int & n_taken) {
    Kind kind;
    n_taken = 1;
    if (!kind_of(nodes[0], kind)) {
        return nullptr;
    }
    auto * chain = arena.make<RowChain>(settings, RowChain::tokens_of(nodes[0], kind));
    if (!chain->append(nodes[0], kind)) {
        return nullptr;
    }
    for (int i = 1; i < n_nodes; i++) {
        if (is_without_work(nodes[i])) {
            continue;
        }
        if (!kind_of(nodes[i], kind) || !chain->append(nodes[i], kind)) {
            break;
        }
        n_taken = i + 1;
    }
    return chain;
}

}  // namespace inferos::kernels
