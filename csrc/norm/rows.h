// The rows of a norm, in whatever the including file's flags make of sixteen lanes. Three passes: the rows stay in L1.
// Bound: memory; per value 2 loads and a store of it, then 2 loads from L1, 2 of weight and bias, and a store.
#pragma once
#include "contract.h"
#include "vectors/unroll.h"
#include "vectors/vector.h"

namespace {

// Whole vectors, and what is left of the row.
struct Whole {};
struct Rest {
    size_t count;
};

ALWAYS_INLINE F32x16 load(const float* p, Whole) { return load(p); }
ALWAYS_INLINE F32x16 load(const float* p, Rest rest) { return load(p, rest.count); }
ALWAYS_INLINE void store(float* p, const F32x16& v, Whole) { store(p, v); }
ALWAYS_INLINE void store(float* p, const F32x16& v, Rest rest) { store(p, v, rest.count); }

template <class F>
ALWAYS_INLINE void for_vectors(size_t n, F f) {
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) f(i, Whole{});
    if (i < n) f(i, Rest{n - i});
}

// R rows side by side: the sums of a row are one chain of additions each, whose latency the others hide.
template <int R>
void norm_some(const Norm& p, size_t m) {
    const size_t n = p.n, row = p.stride;
    const float* x = p.x + m * row;
    float* y = p.y + m * row;
    const float* s = x;
    F32x16 total[R] = {};
    if (p.residual || p.sum) {
        const float* residual = p.residual ? p.residual + m * row : nullptr;
        float* to = p.sum ? p.sum + m * row : y;
        for_vectors(n, [&](size_t i, auto part) INLINED {
            unroll<R>([&](auto r) INLINED {
                F32x16 v = load(x + r.value * row + i, part);
                if (residual) v = v + load(residual + r.value * row + i, part);
                store(to + r.value * row + i, v, part);
                total[r.value] = total[r.value] + v;
            });
        });
        s = to;
    } else {
        for_vectors(n, [&](size_t i, auto part) INLINED {
            unroll<R>([&](auto r) INLINED { total[r.value] = total[r.value] + load(x + r.value * row + i, part); });
        });
    }
    float mean[R], factor[R];
    F32x16 squares[R] = {};
    unroll<R>([&](auto r) INLINED { mean[r.value] = p.centred ? sum(total[r.value]) / n : 0.0f; });
    const size_t whole = n / kLanes * kLanes;
    for (size_t i = 0; i < whole; i += kLanes) {
        unroll<R>([&](auto r) INLINED {
            const F32x16 d = load(s + r.value * row + i) - mean[r.value];
            squares[r.value] = squares[r.value] + d * d;
        });
    }
    unroll<R>([&](auto r) INLINED {
        float rest = 0.0f;
        for (size_t i = whole; i < n; ++i) {
            const float d = s[r.value * row + i] - mean[r.value];
            rest += d * d;
        }
        factor[r.value] = 1.0f / __builtin_sqrtf((sum(squares[r.value]) + rest) / n + p.eps);
    });
    for_vectors(n, [&](size_t i, auto part) INLINED {
        const F32x16 weight = load(p.weight + i, part), bias = p.bias ? load(p.bias + i, part) : F32x16{};
        unroll<R>([&](auto r) INLINED {
            F32x16 v = (load(s + r.value * row + i, part) - mean[r.value]) * factor[r.value] * weight;
            if (p.bias) v = v + bias;
            store(y + r.value * row + i, v, part);
        });
    });
}

inline void norm_rows(const Norm& p, size_t row_begin, size_t row_end) {
    size_t m = row_begin;
    for (; m + 4 <= row_end; m += 4) norm_some<4>(p, m);
    for (; m < row_end; ++m) norm_some<1>(p, m);
}

}  // namespace
