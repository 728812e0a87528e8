// The rows of a norm, in whatever the including file's flags make of sixteen lanes. Three passes: the row stays in L1.
// Bound: memory; per value 2 loads and a store of it, then 2 loads from L1, 2 of weight and bias, and a store.
#pragma once
#include "contract.h"
#include "vector.h"

namespace {

inline void norm_rows(const Norm& p, size_t row_begin, size_t row_end) {
    const size_t n = p.n;
    for (size_t m = row_begin; m < row_end; ++m) {
        const float* x = p.x + m * p.stride;
        float* y = p.y + m * p.stride;
        const float* s = x;
        F32x16 total = {};
        if (p.residual || p.sum) {
            const float* residual = p.residual ? p.residual + m * p.stride : nullptr;
            float* to = p.sum ? p.sum + m * p.stride : y;
            for (size_t i = 0; i < n; i += kLanes) {
                F32x16 v = load(x + i, n - i);
                if (residual) v += load(residual + i, n - i);
                store(to + i, v, n - i);
                total += v;
            }
            s = to;
        } else {
            for (size_t i = 0; i < n; i += kLanes) total += load(x + i, n - i);
        }
        const float mean = sum(total) / n;
        F32x16 squares = {};
        size_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
            const F32x16 d = load(s + i) - mean;
            squares += d * d;
        }
        float rest = 0.0f;
        for (; i < n; ++i) rest += (s[i] - mean) * (s[i] - mean);
        const float factor = 1.0f / __builtin_sqrtf((sum(squares) + rest) / n + p.eps);
        for (i = 0; i < n; i += kLanes) {
            F32x16 v = (load(s + i, n - i) - mean) * factor * load(p.weight + i, n - i);
            if (p.bias) v += load(p.bias + i, n - i);
            store(y + i, v, n - i);
        }
    }
}

}  // namespace
