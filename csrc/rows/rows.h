// The loops over a row, written for one value: the including file's flags make vectors of them.
// Bound: memory, but for tanh, SiLU and GELU: about 20 operations a value.
// Everything is internal to the file that includes it.
#pragma once
#include <string.h>

#include "contract.h"
#include "vectors/bf16.h"
#include "vectors/gelu.h"
#include "vectors/unroll.h"

namespace {

ALWAYS_INLINE float wide(uint16_t x) { return widen(x); }
ALWAYS_INLINE float wide(float x) { return x; }

ALWAYS_INLINE void narrow(float x, uint16_t& out) { out = to_bf16(x); }
ALWAYS_INLINE void narrow(float x, float& out) { out = x; }

// A polynomial, unrolled by hand: the compiler looks for vectors before it would do that. Lowest power first.
ALWAYS_INLINE float polynomial(const float (&c)[6], float x) {
    float y = c[5];
    unroll<5>([&](auto i) INLINED { y = __builtin_fmaf(y, x, c[4 - i.value]); });
    return y;
}

// 2^x; 0 below -126.5, infinite from 127.5 on; a NaN stays one. The lowest bits of `shifted` are the integer nearest to
// x, plus 127: an exponent.
ALWAYS_INLINE float power(float x) {
    constexpr float magic = 0x1.8p23f + 127.0f;
    x = x < -127.0f ? -127.0f : x;
    x = x > 128.0f ? 128.0f : x;
    const float shifted = x + magic, part = x - (shifted - magic);
    return polynomial(kExp2, part) * float_of(bits_of(shifted) << 23);
}

constexpr float kLog2E = 1.44269504f;

// tanh x / x for x up to 0.6, in powers of x^2: a minimax fit of the relative error, 3e-9. Lowest power first.
constexpr float kTanh[6] = {1.0f,
                            -0.3333328366279602f,
                            0.13331688940525055f,
                            -0.05376870557665825f,
                            0.020753629505634308f,
                            -0.005852168425917625f};

template <Function function>
ALWAYS_INLINE float apply(float x) {
    if constexpr (function == Function::kIdentity) return x;
    if constexpr (function == Function::kRelu) return x < 0.0f ? 0.0f : x;
    if constexpr (function == Function::kRelu2) return x < 0.0f ? 0.0f : x * x;
    if constexpr (function == Function::kSilu) return x / (1.0f + power(-kLog2E * x));
    if constexpr (function == Function::kGeluTanh) {  // (1 + tanh u) / 2 = 1 / (1 + exp(-2 u))
        const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
        return x / (1.0f + power(-2.0f * kLog2E * u));
    }
    const float a = float_of(bits_of(x) & 0x7fffffff), near = polynomial(kTanh, x * x) * x;
    const float far = 1.0f - 2.0f / (1.0f + power(2.0f * kLog2E * a));  // cancels where x is small
    return a < 0.6f ? near : float_of(bits_of(far) | (bits_of(x) & 0x80000000));
}

template <Function function, class T>
void apply_all(T* x, size_t n) {
    for (size_t i = 0; i < n; ++i) narrow(apply<function>(wide(x[i])), x[i]);
}

template <class T>
void activate(T* x, Function function, size_t n) {
    static constexpr void (*table[])(T*, size_t) = {
        apply_all<Function::kIdentity, T>, apply_all<Function::kRelu, T>, apply_all<Function::kTanh, T>,
        apply_all<Function::kGeluTanh, T>, apply_all<Function::kSilu, T>, apply_all<Function::kRelu2, T>};
    table[(int)function](x, n);
}

void add(float* __restrict y, const float* __restrict x, size_t n) {
    for (size_t i = 0; i < n; ++i) y[i] += x[i];
}

void embed(const EmbedRow& row, float* __restrict y, size_t n) {
    if (row.kind == WordKind::kF32) memcpy(y, row.word, n * sizeof(float));
    if (row.kind == WordKind::kBf16) {
        const uint16_t* __restrict word = (const uint16_t*)row.word;
        for (size_t i = 0; i < n; ++i) y[i] = wide(word[i]);
    }
    if (row.kind == WordKind::kInt8) {
        const int8_t* __restrict word = (const int8_t*)row.word;
        const float scale = row.scale;
        for (size_t i = 0; i < n; ++i) y[i] = (float)word[i] * scale;
    }
    if (row.factor != 1.0f) {
        const float factor = row.factor;
        for (size_t i = 0; i < n; ++i) y[i] *= factor;
    }
    if (row.position) add(y, row.position, n);
    if (row.type) add(y, row.type, n);
}

void round(const float* __restrict x, uint16_t* __restrict y, size_t n) {
    for (size_t i = 0; i < n; ++i) narrow(x[i], y[i]);
}

void widen(const uint16_t* __restrict x, float* __restrict y, size_t n) {
    for (size_t i = 0; i < n; ++i) y[i] = wide(x[i]);
}

void transform(const float* x, const float* __restrict shift, const float* __restrict multiplier, float* y, size_t n) {
    for (size_t i = 0; i < n; ++i) y[i] = (x[i] - shift[i]) * multiplier[i];
}

void place(const uint8_t* __restrict codes, float scale, int32_t zero, uint16_t* __restrict y, size_t n) {
    for (size_t i = 0; i < n; ++i) narrow((float)((int32_t)codes[i] - 128 - zero) * scale, y[i]);
}

template <Function function>
void gate_by(const uint16_t* __restrict a, const uint16_t* __restrict b, float* __restrict y, size_t n) {
    for (size_t i = 0; i < n; ++i) y[i] = apply<function>(wide(a[i])) * wide(b[i]);
}

void gate(const uint16_t* a, const uint16_t* b, Function function, float* y, size_t n) {
    static constexpr void (*table[])(const uint16_t*, const uint16_t*, float*, size_t) = {
        gate_by<Function::kIdentity>, gate_by<Function::kRelu>, gate_by<Function::kTanh>,
        gate_by<Function::kGeluTanh>, gate_by<Function::kSilu>, gate_by<Function::kRelu2>};
    table[(int)function](a, b, y, n);
}

ALWAYS_INLINE void rotate_head(uint16_t* __restrict first, uint16_t* __restrict second, const float* __restrict cos,
                               const float* __restrict sin, size_t half) {
    for (size_t i = 0; i < half; ++i) {
        const float a = wide(first[i]), b = wide(second[i]);
        narrow(a * cos[i] - b * sin[i], first[i]);
        narrow(b * cos[i] + a * sin[i], second[i]);
    }
}

void rotate(uint16_t* x, size_t heads, size_t head_size, size_t size, const float* cos, const float* sin) {
    const size_t half = size / 2;
    for (size_t head = 0; head < heads; ++head, x += head_size) rotate_head(x, x + half, cos, sin, half);
}

void add_tap(float* __restrict sum, const float* __restrict weight, const uint16_t* __restrict product, size_t n) {
    for (size_t i = 0; i < n; ++i) sum[i] += weight[i] * wide(product[i]);
}

void multiply_rows(const uint16_t* __restrict a, const uint16_t* __restrict b, uint16_t* __restrict y, size_t n) {
    for (size_t i = 0; i < n; ++i) narrow(wide(a[i]) * wide(b[i]), y[i]);
}

void apply_gate(const uint16_t* __restrict c, const float* __restrict sum, uint16_t* __restrict y, size_t n) {
    for (size_t i = 0; i < n; ++i) narrow(wide(c[i]) * sum[i], y[i]);
}

void convolve(const ConvolveRow& row, size_t n) {
    constexpr size_t kPiece = 256;  // whose sums stay in L1
    alignas(64) float sum[kPiece];
    for (size_t at = 0; at < n; at += kPiece) {
        const size_t count = n - at < kPiece ? n - at : kPiece;
        multiply_rows(row.b + at, row.x + at, row.product + at, count);
        if (row.bias) {
            memcpy(sum, row.bias + at, count * sizeof(float));
        } else {
            memset(sum, 0, count * sizeof(float));
        }
        const float* weight = row.weight + at;
        for (size_t tap = 0; tap + 1 < row.taps; ++tap, weight += row.weight_stride) {
            if (row.before[tap]) add_tap(sum, weight, row.before[tap] + at, count);
        }
        add_tap(sum, weight, row.product + at, count);
        apply_gate(row.c + at, sum, row.y + at, count);
    }
}

constexpr RowOperators kRows = {embed, round,  widen,   transform, place, activate<float>, activate<uint16_t>,
                                gate,  rotate, convolve};

}  // namespace
