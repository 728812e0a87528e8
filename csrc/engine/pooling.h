// What pooling does with one row: it is less than a hundredth of a model, whatever its speed.
#pragma once
#include <math.h>
#include <stddef.h>

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
