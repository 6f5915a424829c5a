// Floats side by side, for a kernel that is compiled several times: each lane goes through the
// operations of a scalar program, in its order, so that its result has the scalar program's bits.
// Two registers make one value, which hides the latency of chained additions. Everything here is
// local to the file that includes it: no code made for one CPU may end up in another's variant.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kRegisterLanes = 16;
#elif defined(__AVX2__)
constexpr int kRegisterLanes = 8;
#else
constexpr int kRegisterLanes = 4;
#endif
constexpr int kLanes = 2 * kRegisterLanes;

typedef float   FloatRegister __attribute__((vector_size(kRegisterLanes * 4)));
typedef int32_t IntRegister __attribute__((vector_size(kRegisterLanes * 4)));

// kLanes values. Copied register by register: GCC copies a plain structure through memory, in parts.
template <class Register> struct Lanes {
    Register low, high;

    Lanes() = default;
    Lanes(Register low, Register high) : low(low), high(high) {}
    Lanes(const Lanes & other) : low(other.low), high(other.high) {}
    Lanes & operator=(const Lanes & other) {
        low  = other.low;
        high = other.high;
        return *this;
    }
};
using Floats = Lanes<FloatRegister>;
using Ints   = Lanes<IntRegister>;  // as truth values, 0 or -1

inline FloatRegister broadcast(float value) {
    return FloatRegister{} + value;
}
inline Floats all(float value) {
    return {broadcast(value), broadcast(value)};
}

inline FloatRegister load_register(const float * from) {
    FloatRegister v;
    memcpy(&v, from, sizeof v);
    return v;
}
inline Floats load(const float * from) {
    return {load_register(from), load_register(from + kRegisterLanes)};
}
inline void store(float * to, Floats v) {
    memcpy(to, &v.low, sizeof v.low);
    memcpy(to + kRegisterLanes, &v.high, sizeof v.high);
}

inline Floats operator+(Floats a, Floats b) {
    return {a.low + b.low, a.high + b.high};
}
inline Floats operator-(Floats a, Floats b) {
    return {a.low - b.low, a.high - b.high};
}
inline Floats operator*(Floats a, Floats b) {
    return {a.low * b.low, a.high * b.high};
}
inline Floats operator/(Floats a, Floats b) {
    return {a.low / b.low, a.high / b.high};
}
inline Floats operator-(Floats a) {
    return {-a.low, -a.high};
}
inline Ints operator<(Floats a, Floats b) {
    return {a.low < b.low, a.high < b.high};
}
inline Ints operator>(Floats a, Floats b) {
    return {a.low > b.low, a.high > b.high};
}
inline Ints operator==(Floats a, Floats b) {
    return {a.low == b.low, a.high == b.high};
}
inline Ints operator!=(Floats a, Floats b) {
    return {a.low != b.low, a.high != b.high};
}
inline Ints operator&(Ints a, Ints b) {
    return {a.low & b.low, a.high & b.high};
}
inline Ints operator|(Ints a, Ints b) {
    return {a.low | b.low, a.high | b.high};
}

inline Floats select(Ints where, Floats a, Floats b) {
    return {where.low ? a.low : b.low, where.high ? a.high : b.high};
}

inline bool any(Ints where) {
    const IntRegister both = where.low | where.high;
    uint64_t          words[sizeof both / sizeof(uint64_t)], bits = 0;
    memcpy(words, &both, sizeof both);
    for (uint64_t word : words) {
        bits |= word;
    }
    return bits != 0;
}

// a < b ? a : b, lane by lane, and a > b ? a : b: what x86's instructions do, ties and all
#if defined(__AVX512F__)
// (the forms without a mask start from a register that GCC 12 warns of)
constexpr __mmask16 kEvery = 0xffff;
inline FloatRegister minimum(FloatRegister a, FloatRegister b) {
    return _mm512_maskz_min_ps(kEvery, a, b);
}
inline FloatRegister maximum(FloatRegister a, FloatRegister b) {
    return _mm512_maskz_max_ps(kEvery, a, b);
}
inline FloatRegister square_root(FloatRegister a) {
    return _mm512_maskz_sqrt_ps(kEvery, a);
}
#elif defined(__AVX2__)
inline FloatRegister minimum(FloatRegister a, FloatRegister b) {
    return _mm256_min_ps(a, b);
}
inline FloatRegister maximum(FloatRegister a, FloatRegister b) {
    return _mm256_max_ps(a, b);
}
inline FloatRegister square_root(FloatRegister a) {
    return _mm256_sqrt_ps(a);
}
#elif defined(__SSE2__)
inline FloatRegister minimum(FloatRegister a, FloatRegister b) {
    return _mm_min_ps(a, b);
}
inline FloatRegister maximum(FloatRegister a, FloatRegister b) {
    return _mm_max_ps(a, b);
}
inline FloatRegister square_root(FloatRegister a) {
    return _mm_sqrt_ps(a);
}
#else
inline FloatRegister minimum(FloatRegister a, FloatRegister b) {
    return a < b ? a : b;
}
inline FloatRegister maximum(FloatRegister a, FloatRegister b) {
    return a > b ? a : b;
}
inline FloatRegister square_root(FloatRegister a) {
    for (int i = 0; i < kRegisterLanes; i++) {
        a[i] = __builtin_sqrtf(a[i]);
    }
    return a;
}
#endif
inline Floats minimum(Floats a, Floats b) {
    return {minimum(a.low, b.low), minimum(a.high, b.high)};
}
inline Floats maximum(Floats a, Floats b) {
    return {maximum(a.low, b.low), maximum(a.high, b.high)};
}
inline Floats square_root(Floats a) {
    return {square_root(a.low), square_root(a.high)};
}

inline FloatRegister magnitude(FloatRegister a) {
    return (FloatRegister)((IntRegister)a & 0x7fffffff);
}
inline Floats magnitude(Floats a) {
    return {magnitude(a.low), magnitude(a.high)};
}

// The nearest whole number, ties to even, as ggml finds it: 1.5 * 2^23 pushes the fraction out of
// the mantissa, whose 23 bits, less 2^22, are then the number. Beyond +-2^22 that wraps around, in
// ggml as here: exponent and sign are set to what they are within.
constexpr float   kRounder      = 12582912.0f;
constexpr int32_t kMantissa     = 0x007fffff;
constexpr int32_t kRoundedUpper = 0x4b000000;  // sign and exponent of the floats from 2^23 to 2^24

inline FloatRegister nearest(FloatRegister a) {
    const IntRegister bits = (IntRegister)(a + kRounder);
    return (FloatRegister)((bits & kMantissa) | kRoundedUpper) - kRounder;
}
inline Floats nearest(Floats a) {
    return {nearest(a.low), nearest(a.high)};
}

inline FloatRegister clamp(FloatRegister a, float least, float most) {
    return maximum(minimum(a, broadcast(most)), broadcast(least));
}
inline Floats clamp(Floats a, float least, float most) {
    return {clamp(a.low, least, most), clamp(a.high, least, most)};
}

inline int32_t nearest(float a) {
    const float shifted = a + kRounder;
    int32_t     bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (bits & kMantissa) - 0x00400000;
}

inline int32_t clamp(int32_t a, int32_t least, int32_t most) {
    return a < least ? least : a > most ? most : a;
}

// Whole numbers as a byte keeps them: modulo 256, from 0 on.
inline FloatRegister as_byte(FloatRegister a) {
    const IntRegister whole = __builtin_convertvector(a, IntRegister);
    return __builtin_convertvector(whole & 0xff, FloatRegister);
}
inline Floats as_byte(Floats a) {
    return {as_byte(a.low), as_byte(a.high)};
}

}  // namespace
