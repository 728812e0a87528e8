// What operators do with one row where little depends on the speed: embeddings are a hundredth of a model, pooling less.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "program.h"

inline float wide(uint16_t bf16) {
    const uint32_t bits = uint32_t(bf16) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// To nearest, half to even; a NaN stays one.
inline uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7fc0;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void from_bf16(const uint16_t* in, float* out, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] = wide(in[i]);
}

inline void to_bf16(const float* in, uint16_t* out, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] = narrow(in[i]);
}

inline void from_int8(const int8_t* in, float scale, float* out, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] = float(in[i]) * scale;
}

inline void add(float* out, const float* in, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] += in[i];
}

inline void add_scaled(float* out, const float* in, float factor, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] += in[i] * factor;
}

inline void multiply(float* out, float factor, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] *= factor;
}

// A NaN on either side stays.
inline void maximum(float* out, const float* in, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] = in[i] > out[i] || in[i] != in[i] ? in[i] : out[i];
}

inline void to_unit_length(float* row, size_t n) {
    double squares = 0.0;
    for (size_t i = 0; i < n; ++i) squares += double(row[i]) * row[i];
    const double length = sqrt(squares);
    multiply(row, float(1.0 / (length > 1e-12 ? length : 1e-12)), n);  // the floor of torch's normalize
}

inline float apply(float x, Function function) {
    switch (function) {
        case Function::kRelu:
            return x < 0.0f ? 0.0f : x;
        case Function::kTanh:
            return tanhf(x);
        case Function::kGeluTanh:
            return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        case Function::kSilu:
            return x / (1.0f + expf(-x));
        default:
            return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    }
}

inline void activate(float* row, Function function, size_t n) {
    for (size_t i = 0; i < n; ++i) row[i] = apply(row[i], function);
}

inline void activate_bf16(uint16_t* row, Function function, size_t n) {
    for (size_t i = 0; i < n; ++i) row[i] = narrow(apply(wide(row[i]), function));
}

inline void gate(const uint16_t* a, const uint16_t* b, uint16_t* out, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] = narrow(wide(a[i]) * wide(b[i]));
}

// x1, x2 <- x1 cos - x2 sin, x2 cos + x1 sin of the halves of one head.
inline void rotate(uint16_t* head, const float* cos, const float* sin, size_t half) {
    for (size_t i = 0; i < half; ++i) {
        const float a = wide(head[i]), b = wide(head[half + i]);
        head[i] = narrow(a * cos[i] - b * sin[i]);
        head[half + i] = narrow(b * cos[i] + a * sin[i]);
    }
}
