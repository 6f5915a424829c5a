// The kernels by themselves, to be built with sanitizers (make sanitize) or for another processor
// (make arm-check): every variant against the portable path, on buffers of exactly the right size,
// and attention against double precision. The 256-bit code with VNNI also runs here, in AVX-512's
// encoding, where the CPU has no other. An argument says which variant must be the best here, or
// "none".
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "attention_op.h"
#include "ggml.h"
#include "kernels.h"
#include "mul_mat.h"
#include "team.h"

namespace inferos::kernels {
const Variant * variant_avx512vl();
}

using namespace inferos::kernels;

namespace {

std::mt19937 engine(1);
int          n_failed = 0;

float normal() {
    static std::normal_distribution<float> distribution;
    return distribution(engine);
}

void check(bool good, const char * what, const char * variant, int64_t a, int64_t b, int64_t c) {
    if (!good) {
        std::printf("FAILED: %s %s %ld %ld %ld\n", what, variant, long(a), long(b), long(c));
        n_failed++;
    }
}

std::vector<uint8_t> random_bytes(size_t n) {
    std::vector<uint8_t> bytes(n);
    for (auto & byte : bytes) {
        byte = static_cast<uint8_t>(engine());
    }
    return bytes;
}

// Any bits but for the scales, which sit at `halves` of every block.
std::vector<uint8_t> random_rows(const WeightType & type, int64_t n_rows, int64_t n_per_row) {
    auto bytes =
        random_bytes(static_cast<size_t>(n_rows * n_per_row / type.unit_values * type.unit_bytes));
    const size_t at     = type.type == GGML_TYPE_Q6_K   ? 208
                          : type.type == GGML_TYPE_Q3_K ? 108
                          : type.type == GGML_TYPE_Q2_K ? 80
                                                        : 0;
    const bool   is_two = type.type == GGML_TYPE_Q2_K || (type.unit_values == 256 && at == 0);
    for (size_t i = 0; i < bytes.size(); i += static_cast<size_t>(type.unit_bytes)) {
        for (size_t j = 0; j < (is_two ? 4 : 2); j += 2) {
            const ggml_fp16_t half = ggml_fp32_to_fp16(0.01f * normal());
            std::memcpy(&bytes[i + at + j], &half, 2);
        }
    }
    return bytes;
}

bool same(const std::vector<float> & a, const std::vector<float> & b) {
    for (size_t i = 0; i < a.size(); i++) {
        if (!(a[i] == b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]))) {
            return false;
        }
    }
    return true;
}

void check_product(const Variant & variant, const WeightType & type, int64_t n_rows,
                   int64_t n_per_row, int64_t n_columns, bool extreme) {
    const auto         weights = random_rows(type, n_rows, n_per_row);
    std::vector<float> x(static_cast<size_t>(n_per_row * n_columns));
    for (auto & value : x) {
        value = normal();
    }
    if (extreme) {
        const float limits[] = {0.0f,
                                -0.0f,
                                1e-41f,
                                3e38f,
                                65504.0f,
                                std::numeric_limits<float>::quiet_NaN(),
                                -std::numeric_limits<float>::infinity()};
        for (size_t i = 0; i < x.size(); i += 37) {
            x[i] = limits[i / 37 % 7];
        }
    }
    std::vector<float> wanted(static_cast<size_t>(n_rows * n_columns)), got(wanted.size());
    MulMat             job = {
        weights.data(), static_cast<size_t>(n_per_row / type.unit_values * type.unit_bytes),
        n_rows,         n_per_row,
        x.data(),       static_cast<size_t>(n_per_row),
        wanted.data(),  static_cast<size_t>(n_rows),
        n_columns,
    };
    check(mul_mat_portable(type.type, job), "portable", variant.name, type.type, 0, 0);
    job.out = got.data();
    Scratch scratch;
    check(mul_mat(variant, type, job, 1 + static_cast<int>(n_columns % 3), scratch), "memory",
          variant.name, type.type, 0, 0);
    check(same(wanted, got), "product", variant.name, type.type, n_rows, n_columns);
}

ggml_tensor tensor(int type, const void * data, int64_t a, int64_t b, int64_t c, size_t row) {
    ggml_tensor made   = {};
    made.type          = static_cast<ggml_type>(type);
    made.data          = const_cast<void *>(data);
    const int64_t ne[] = {a, b, c, 1};
    const size_t  nb[] = {ggml_type_size(made.type), row, row * static_cast<size_t>(b),
                          row * static_cast<size_t>(b * c)};
    std::memcpy(made.ne, ne, sizeof(ne));
    std::memcpy(made.nb, nb, sizeof(nb));
    return made;
}

// Rows of the cache in float, and as stored.
struct Rows {
    std::vector<float>   values;
    std::vector<uint8_t> bytes;
};

Rows cache_rows(int type, int64_t n_rows, int64_t n) {
    Rows rows;
    rows.values.resize(static_cast<size_t>(n_rows * n));
    for (auto & value : rows.values) {
        value = normal();
    }
    const auto * traits = ggml_get_type_traits(static_cast<ggml_type>(type));
    const auto   size   = ggml_row_size(static_cast<ggml_type>(type), n);
    rows.bytes.resize(size * static_cast<size_t>(n_rows));
    for (int64_t i = 0; i < n_rows; i++) {
        float *   values = &rows.values[static_cast<size_t>(i * n)];
        uint8_t * bytes  = &rows.bytes[static_cast<size_t>(i) * size];
        traits->from_float_ref(values, bytes, n);
        traits->to_float(bytes, values, n);
    }
    return rows;
}

void check_attention(const Variant & variant, int k_type, int v_type, int64_t head,
                     int64_t n_tokens, int64_t n_positions, int n_threads) {
    const int64_t      n_heads = 2;
    const Rows         k       = cache_rows(k_type, n_heads * n_positions, head);
    const Rows         v       = cache_rows(v_type, n_heads * n_positions, head);
    std::vector<float> q(static_cast<size_t>(n_heads * n_tokens * head)), out(q.size());
    for (auto & value : q) {
        value = normal();
    }
    std::vector<ggml_fp16_t> mask(static_cast<size_t>(n_tokens * n_positions));
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t i = 0; i < n_positions; i++) {
            const bool seen = i <= n_positions - n_tokens + t;
            mask[static_cast<size_t>(t * n_positions + i)] =
                ggml_fp32_to_fp16(seen ? 0.0f : -std::numeric_limits<float>::infinity());
        }
    }
    const auto size = [head](int type) {
        return ggml_row_size(static_cast<ggml_type>(type), head);
    };
    ggml_tensor tq = tensor(GGML_TYPE_F32, q.data(), head, n_tokens, n_heads, size(GGML_TYPE_F32));
    ggml_tensor tk = tensor(k_type, k.bytes.data(), head, n_positions, n_heads, size(k_type));
    ggml_tensor tv = tensor(v_type, v.bytes.data(), head, n_positions, n_heads, size(v_type));
    ggml_tensor tm = tensor(GGML_TYPE_F16, mask.data(), n_positions, n_tokens, 1,
                            static_cast<size_t>(2 * n_positions));
    ggml_tensor op =
        tensor(GGML_TYPE_F32, out.data(), head, n_heads, n_tokens, size(GGML_TYPE_F32));
    op.src[0]                = &tq;
    op.src[1]                = &tk;
    op.src[2]                = &tv;
    op.src[3]                = &tm;
    const float parameters[] = {1.0f / std::sqrt(static_cast<float>(head)), 0.0f, 0.0f};
    std::memcpy(op.op_params, parameters, sizeof(parameters));
    check(takes_attention(variant, &op), "takes", variant.name, k_type, v_type, head);
    Scratch scratch;
    check(compute_attention(variant, &op, {}, n_threads, scratch), "memory", variant.name, 0, 0, 0);
    double worst = 0;
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < n_heads; h++) {
            const int64_t       n = n_positions - n_tokens + t + 1;
            std::vector<double> p(static_cast<size_t>(n)), wanted(static_cast<size_t>(head));
            double              total = 0;
            for (int64_t i = 0; i < n; i++) {
                double dot = 0;
                for (int64_t d = 0; d < head; d++) {
                    dot += double(q[size_t((h * n_tokens + t) * head + d)]) *
                           k.values[size_t((h * n_positions + i) * head + d)];
                }
                total += p[size_t(i)] = std::exp(dot * parameters[0]);
            }
            for (int64_t i = 0; i < n; i++) {
                for (int64_t d = 0; d < head; d++) {
                    wanted[size_t(d)] +=
                        p[size_t(i)] / total * v.values[size_t((h * n_positions + i) * head + d)];
                }
            }
            for (int64_t d = 0; d < head; d++) {
                worst = std::max(worst, std::fabs(wanted[size_t(d)] -
                                                  out[size_t((t * n_heads + h) * head + d)]));
            }
        }
    }
    // queries are rounded to 8 bits
    check(worst < 3e-2, "attention", variant.name, k_type, head, n_positions);
}

// Scores that are far apart, the first of them masked out.
void check_softmax(const Variant & variant, int64_t n_masked) {
    constexpr int64_t n   = 128;
    constexpr float slope = 0.5f, scale = 0.25f, nothing = -std::numeric_limits<float>::infinity();
    float           scores[n];
    ggml_fp16_t     mask[n];
    float           seen_scores[n], largest = nothing;
    double          wanted[n], sum          = 0;
    for (int64_t i = 0; i < n; i++) {
        scores[i]        = 300.0f * normal();
        const float bias = i < n_masked ? nothing : static_cast<float>(-(i % 7));
        mask[i]          = ggml_fp32_to_fp16(bias);
        seen_scores[i]   = i < n_masked ? nothing : std::fma(bias, slope, scores[i] * scale);
        largest          = std::max(largest, seen_scores[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        const float below = largest == nothing ? nothing : seen_scores[i] - largest;
        wanted[i]         = below < -87.0f ? 0 : std::exp(static_cast<double>(below));
        sum += wanted[i];
    }
    Seen seen;
    variant.attention.softmax(scores, n, scale, mask, slope, &seen);
    check(seen.largest == largest, "largest", variant.name, n_masked, 0, 0);
    check(std::fabs(seen.sum - sum) <= 1e-6 * sum, "sum", variant.name, n_masked, 0, 0);
    for (int64_t i = 0; i < n; i++) {
        check(std::fabs(scores[i] - wanted[i]) <= 1e-6 * wanted[i], "exponential", variant.name,
              n_masked, i, 0);
    }
}

// Row operations against double precision; `wanted` is of row i's value j.
template <class Wanted>
void check_rows(const char * what, const Variant & variant, const std::vector<float> & got,
                double tolerance, Wanted wanted) {
    double worst = 0;
    for (size_t i = 0; i < got.size(); i++) {
        const double exact = wanted(i);
        worst              = std::max(worst, std::fabs(got[i] - exact) / (1e-3 + std::fabs(exact)));
    }
    check(worst < tolerance, what, variant.name, static_cast<int64_t>(got.size()), 0, 0);
}

void check_row_kernels(const Variant & variant, int64_t n) {
    const RowKernels & rows = variant.rows_of_floats;
    const auto         size = static_cast<size_t>(n);
    std::vector<float> x(size), b(size), y(size);
    double             mean = 0, squares = 0;
    for (size_t i = 0; i < size; i++) {
        x[i] = 3.0f * normal();
        b[i] = normal();
        mean += x[i] / static_cast<double>(n);
    }
    for (const float value : x) {
        squares += (value - mean) * (value - mean) / static_cast<double>(n);
    }
    rows.norm(n, x.data(), 1e-5f, y.data());
    check_rows("norm", variant, y, 1e-4,
               [&](size_t i) { return (x[i] - mean) / std::sqrt(squares + 1e-5); });
    rows.add(n, x.data(), b.data(), y.data());
    check_rows("add", variant, y, 1e-6, [&](size_t i) { return double(x[i]) + b[i]; });
    rows.mul(n, x.data(), b.data(), y.data());
    check_rows("mul", variant, y, 1e-6, [&](size_t i) { return double(x[i]) * b[i]; });
    rows.scale(n, x.data(), 0.25f, 1.5f, y.data());
    check_rows("scale", variant, y, 1e-6, [&](size_t i) { return x[i] * 0.25 + 1.5; });
    rows.gelu(n, x.data(), y.data());
    check_rows("gelu", variant, y, 1e-5, [&](size_t i) {
        const double v = x[i];
        return v / (1 + std::exp(-2 * 0.7978845608028654 * (v + 0.044715 * v * v * v)));
    });
    rows.gelu_erf(n, x.data(), y.data());
    check_rows("gelu_erf", variant, y, 1e-5,
               [&](size_t i) { return 0.5 * x[i] * std::erfc(-x[i] / 1.4142135623730951); });
    rows.rotate(n / 2, x.data(), b.data(), b.data() + n / 2, y.data());
    check_rows("rotate", variant, y, 1e-3, [&](size_t i) {
        const size_t h = size / 2, j = i % h;
        return i < h ? double(x[j]) * b[j] - double(x[j + h]) * b[j + h]
                     : double(x[j]) * b[j + h] + double(x[j + h]) * b[j];
    });
    rows.hadamard(n, x.data(), y.data());
    check_rows("hadamard", variant, y, 1e-2, [&](size_t i) {
        double sum = 0;
        for (size_t j = 0; j < size; j++) {
            sum += __builtin_parityll(i & j) ? -x[j] : x[j];
        }
        return sum / std::sqrt(static_cast<double>(n));
    });
}

// Every piece is computed once, and none of the next phase before all of this one.
void check_team(int n_members) {
    constexpr int64_t    n    = 997;
    Team &               team = Team::of_this_thread();
    std::vector<int32_t> first(n), second(n);
    for (int call = 0; call < 200; call++) {
        Pieces     one(n, n_members), two(n, n_members, 3);
        const auto work = [&](const Member & me) {
            one.run(me, [&](int64_t i) { first[size_t(i)]++; });
            two.run(me, [&](int64_t i) { second[size_t(i)] += first[size_t(n - 1 - i)] - call; });
        };
        team.call(n_members, false, 0, work);
    }
    bool good = true;
    for (size_t i = 0; i < size_t(n); i++) {
        good = good && first[i] == 200 && second[i] == 200;
    }
    check(good && !team.is_called_off(), "team", "of", n_members, 0, 0);
}

// A call never has more members than it asks for, whoever comes late from a larger one.
void check_sizes() {
    Team &            team = Team::of_this_thread();
    std::atomic<bool> good{true};
    for (int call = 0; call < 3000; call++) {
        const int  n_members = call % 2 == 0 ? 6 : 2;
        Pieces     pieces(n_members, n_members, 1);
        const auto work = [&](const Member & me) {
            if (me.index >= n_members) {
                good = false;
            }
            pieces.run(me, [](int64_t) {});
        };
        team.call(n_members, false, 0, work);
    }
    check(good, "team", "sizes", 0, 0, 0);
}

// Whoever waits for pieces that nobody will compute returns.
void check_calling_off(int n_members) {
    Team & team = Team::of_this_thread();
    for (int call = 0; call < 50; call++) {
        Pieces     pieces(100, n_members, 1);
        const auto work = [&](const Member & me) {
            if (me.index == 0) {
                me.team.call_off();
                return;
            }
            int64_t i = 0, end = 0;
            if (pieces.claim(i, end)) {
                pieces.wait(me);
            }
        };
        team.call(n_members, false, 0, work);
        check(team.is_called_off(), "called off", "by", n_members, call, 0);
    }
    check_team(n_members);
}

// Calls of two kinds by turns, whose times depend on the members; returns how many were in the last.
class Calls {
  public:
    explicit Calls(int most) : most_(most) {}

    template <class Time> int run_until(int64_t end, int64_t n_preempted_a_call, Time time) {
        int size = 0;
        n_fewer  = 0;
        for (n = 0; now_ < end; n++) {
            size                  = crew_.size(now_, most_);
            const int64_t elapsed = (n % 2 + 1) * time(size);
            const int64_t waited  = elapsed * waited_percent / 100;
            now_ += elapsed;
            preempted_ += n_preempted_a_call;
            n_fewer += size < most_;
            crew_.note(now_, 4096 * (n % 2 + 1), elapsed, waited, [&] { return preempted_; });
        }
        return size;
    }

    void pause(int64_t time) { now_ += time; }

    int64_t n = 0, n_fewer = 0, waited_percent = 0;

  private:
    Crew    crew_;
    int     most_;
    int64_t now_ = 0, preempted_ = 1000;
};

void check_crew() {
    constexpr int64_t ms = 1'000'000, second = 1000 * ms;
    const auto        faster_alone = [](int size) { return size == 1 ? 3 * ms : 4 * ms; };
    const auto        faster_with  = [](int size) { return size == 1 ? 5 * ms : 3 * ms; };

    Calls quiet(2);
    check(quiet.run_until(10 * second, 0, faster_alone) == 2 && quiet.n_fewer == 0, "crew",
          "nobody disturbs it: nothing is tried", 0, 0, 0);

    Calls busy(2);
    busy.run_until(second, 1, faster_alone);
    busy.run_until(10 * second, 1, faster_alone);
    check(busy.n_fewer > busy.n * 9 / 10, "crew", "faster without the other", 0, busy.n_fewer,
          busy.n);
    check(busy.run_until(13 * second, 0, faster_with) == 2, "crew", "and with it again", 0, 0, 0);
    busy.run_until(20 * second, 0, faster_with);
    check(busy.n_fewer == 0, "crew", "and stays so", 0, busy.n_fewer, busy.n);

    Calls worth(2);
    worth.run_until(5 * second, 1, faster_with);
    worth.run_until(30 * second, 1, faster_with);
    check(worth.n_fewer < worth.n / 20, "crew", "trials become rare", 0, worth.n_fewer, worth.n);

    Calls waiting(2);  // for a thread that is kept from running
    waiting.waited_percent = 20;
    waiting.run_until(5 * second, 0, faster_alone);
    check(waiting.n_fewer == 0, "crew", "a fifth", 0, 0, 0);
    waiting.waited_percent = 40;
    check(waiting.run_until(10 * second, 0, faster_alone) == 1, "crew", "two fifths", 0, 0, 0);
    waiting.pause(60 * second);
    waiting.waited_percent = 0;
    check(waiting.run_until(71 * second, 0, faster_with) == 2, "crew", "after a break", 0, 0, 0);

    Calls      three(4);  // the best of four
    const auto best_of_four = [](int size) { return (size - 3) * (size - 3) * ms + 5 * ms; };
    three.run_until(3 * second, 1, best_of_four);
    int64_t n_three = 0;
    three.run_until(20 * second, 1, [&](int size) {
        n_three += size == 3;
        return best_of_four(size);
    });
    check(n_three > three.n * 8 / 10, "crew", "three of four", 0, n_three, three.n);
}

}  // namespace

int main(int argc, char ** argv) {
    const Variant * variants[6] = {};
    int             n           = 0;
    for (const char * name :
         {"avx2", "avxvnni", "avx512vnni", "avx512vbmi", "amx-emulated", "neon"}) {
        if (const Variant * variant = variant_named(name)) {
            variants[n++] = variant;
        }
    }
#if defined(__x86_64__)
    if (variant_named("avx512vnni") != nullptr) {
        variants[n++] = variant_avx512vl();
    }
#endif
    const char * best = best_variant() != nullptr ? best_variant()->name : "none";
    if (argc > 1) {
        check(std::strcmp(best, argv[1]) == 0, "the best variant is", best, 0, 0, 0);
    }
    for (int i = 0; i < n; i++) {
        const Variant & variant = *variants[i];
        for (int32_t t = 0; t < variant.n_types; t++) {
            const WeightType & type = variant.types[t];
            for (const int64_t n_columns : {1, 2, 5, 8, 9, 16, 19, 70}) {
                for (const int64_t n_rows : {16, 17, 37, 130}) {
                    check_product(variant, type, n_rows, 256, n_columns, n_rows == 37);
                }
                check_product(variant, type, 33, 2304, n_columns, false);
            }
            check_product(variant, type, 33, 4864, 1, false);
            // panels by twos, and what is left over
            for (const int64_t n_columns : {9, 11, 12, 13}) {
                check_product(variant, type, 600, 256, n_columns, false);
                check_product(variant, type, 1000, 256, n_columns, false);
            }
        }
#if defined(__x86_64__)
        check(!has_emulated_shapes(), "shapes are put back", variant.name, 0, 0, 0);
#endif
        for (const int64_t n_masked : {0, 1, 3, 37, 128}) {
            check_softmax(variant, n_masked);
        }
        for (const int64_t length : {16, 64, 1024}) {
            check_row_kernels(variant, length);
        }
        for (const int k_type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_F16}) {
            for (const int v_type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_F16}) {
                check_attention(variant, k_type, v_type, 64, 1, 300, 1);
                check_attention(variant, k_type, v_type, 96, 3, 530, 4);
                check_attention(variant, k_type, v_type, 128, 19, 77, 2);
                check_attention(variant, k_type, v_type, 256, 8, 40, 2);
            }
        }
        std::printf("%s: checked\n", variant.name);
    }
    check_crew();
    check_sizes();
    for (const int n_members : {1, 2, 3, 7}) {
        check_team(n_members);
        check_calling_off(n_members);
    }
    std::printf("the team: checked\n");
    if (n == 0) {
        std::printf("no variant runs: %s\n", missing_features());
    }
    return n_failed == 0 ? 0 : 1;
}
