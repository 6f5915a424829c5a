// AMX in plain C++, from the operations of Intel's manual, volume 2: what the kernels compute, and how
// they use it, can be checked on a CPU without it. What AMX does not allow ends the process with
// SIGILL, as there.
#include "amx.h"

namespace {

constexpr int kMatrixRows = 16, kMatrixBytes = 64;

struct Matrices {
    Shapes  shapes;
    uint8_t bytes[8][kMatrixRows][kMatrixBytes] = {};
};

thread_local Matrices matrices;

void require(bool allowed) {
    if (!allowed) {
        __builtin_trap();
    }
}

struct EmulatedAmx {
    static void load_shapes(const Shapes & shapes) {
        require(shapes.palette <= 1 && shapes.start_row == 0);
        for (int i = 0; i < 8; i++) {
            require(shapes.palette == 0 || (shapes.rows[i] >= 1 && shapes.row_bytes[i] >= 1));
            require(shapes.rows[i] <= kMatrixRows && shapes.row_bytes[i] <= kMatrixBytes);
            require(shapes.unused[i] == 0 && shapes.unused_too[i] == 0);
        }
        for (const uint8_t byte : shapes.reserved) {
            require(byte == 0);
        }
        matrices        = Matrices{};  // all values become zero
        matrices.shapes = shapes.palette != 0 ? shapes : Shapes{};
    }
    static void store_shapes(Shapes & shapes) { shapes = matrices.shapes; }

    template <int to> static void zero() {
        require(matrices.shapes.palette == 1);
        __builtin_memset(matrices.bytes[to], 0, sizeof(matrices.bytes[to]));
    }
    template <int to> static void load(const void * from, size_t stride) {
        zero<to>();
        const auto * p = static_cast<const uint8_t *>(from);
        for (size_t i = 0; i < matrices.shapes.rows[to]; i++) {
            __builtin_memcpy(matrices.bytes[to][i], p + i * stride, matrices.shapes.row_bytes[to]);
        }
    }
    template <int from> static void store(void * to, size_t stride) {
        require(matrices.shapes.palette == 1);
        auto * p = static_cast<uint8_t *>(to);
        for (size_t i = 0; i < matrices.shapes.rows[from]; i++) {
            __builtin_memcpy(p + i * stride, matrices.bytes[from][i],
                             matrices.shapes.row_bytes[from]);
        }
    }
    // sum[m][n] += a[m][4 k + j] * b[k][4 n + j], over k and j
    template <int sum, int a, int b> static void add_products() {
        const Shapes & s = matrices.shapes;
        require(s.palette == 1 && sum != a && sum != b && a != b);
        require(s.rows[sum] == s.rows[a] && s.row_bytes[sum] == s.row_bytes[b]);
        require(s.row_bytes[a] == 4 * s.rows[b] && s.row_bytes[b] % 4 == 0);
        for (int m = 0; m < s.rows[sum]; m++) {
            for (int n = 0; n < s.row_bytes[sum] / 4; n++) {
                int32_t total;
                __builtin_memcpy(&total, &matrices.bytes[sum][m][4 * n], 4);
                for (int k = 0; k < s.rows[b]; k++) {
                    for (int j = 0; j < 4; j++) {
                        total += static_cast<int8_t>(matrices.bytes[a][m][4 * k + j]) *
                                 static_cast<int8_t>(matrices.bytes[b][k][4 * n + j]);
                    }
                }
                __builtin_memcpy(&matrices.bytes[sum][m][4 * n], &total, 4);
            }
        }
    }
};

}  // namespace

namespace inferos::kernels {

const Variant * variant_amx_emulated() {
    return amx_variant<EmulatedAmx>("amx-emulated");
}

bool has_emulated_shapes() {
    return matrices.shapes.palette != 0;
}

}  // namespace inferos::kernels
