// How keys, values and queries are rotated before they become codes. Everything is internal to the file that includes
// it.
#pragma once
#include "layout.h"

namespace {

// Multiplies each stretch of a head's values by a Hadamard matrix of ones and minus ones, in place.
inline void rotate_head(float* x, size_t size) {
    const size_t count = rotated_together(size), half = count / 2;
    for (const float* end = x + size; x < end; x += count) {
        for (size_t step = 1; step < count; step *= 2) {
            float from[kMaxHeadSize];
            memcpy(from, x, count * sizeof *x);
            for (size_t i = 0; i < half; ++i) {
                x[2 * i] = from[i] + from[i + half];
                x[2 * i + 1] = from[i] - from[i + half];
            }
        }
    }
}

inline void rotated_query(const uint16_t* q, size_t size, float* out) {
    widen_row(q, size, out);
    rotate_head(out, size);
}

// A key or a value, rotated.
inline void rotated(const uint16_t* x, size_t size, float* out) {
    const float inverse = 1.0f / (float)rotated_together(size);
    for (size_t i = 0; i < size; ++i) out[i] = widen(x[i]) * inverse;
    rotate_head(out, size);
}

}  // namespace
