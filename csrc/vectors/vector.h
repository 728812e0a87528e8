// Sixteen floats in the compiler's own vector type. One source for every instruction set: each variant's flags say what
// the operations become, and since lanes and order are the same in all, so are the results, to the last bit.
// Everything is internal to the file that includes it.
#pragma once
#include <stddef.h>

#include "vectors/unroll.h"

namespace {

constexpr size_t kLanes = 16;

#if defined(__AVX512F__)
constexpr int kParts = 1;
#elif defined(__AVX2__)
constexpr int kParts = 2;
#else
constexpr int kParts = 4;
#endif

// In as many parts as registers: GCC 12 keeps a vector that is wider than a register on the stack.
struct F32x16 {
    typedef float Part __attribute__((vector_size(64 / kParts)));
    Part part[kParts];
};

// A vector of the parts that f gives.
template <class F>
ALWAYS_INLINE F32x16 of_parts(F f) {
    F32x16 v;
    unroll<kParts>([&](auto i) INLINED { v.part[i.value] = f(i.value); });
    return v;
}

ALWAYS_INLINE F32x16 operator+(const F32x16& a, const F32x16& b) {
    return of_parts([&](int i) INLINED { return a.part[i] + b.part[i]; });
}
ALWAYS_INLINE F32x16 operator*(const F32x16& a, const F32x16& b) {
    return of_parts([&](int i) INLINED { return a.part[i] * b.part[i]; });
}
ALWAYS_INLINE F32x16 operator-(const F32x16& a, float b) {
    return of_parts([&](int i) INLINED { return a.part[i] - b; });
}
ALWAYS_INLINE F32x16 operator*(const F32x16& a, float b) {
    return of_parts([&](int i) INLINED { return a.part[i] * b; });
}

ALWAYS_INLINE F32x16 load(const float* p) {
    return of_parts([&](int i) INLINED {
        F32x16::Part v;
        __builtin_memcpy(&v, p + i * (kLanes / kParts), sizeof v);
        return v;
    });
}

ALWAYS_INLINE void store(float* p, const F32x16& v) {
    unroll<kParts>([&](auto i)
                       INLINED { __builtin_memcpy(p + i.value * (kLanes / kParts), &v.part[i.value], 64 / kParts); });
}

// The first `count` of sixteen; the other lanes are 0, and are not stored.
ALWAYS_INLINE F32x16 load(const float* p, size_t count) {
    float all[kLanes] = {};
    __builtin_memcpy(all, p, count * sizeof(float));
    return load(all);
}

ALWAYS_INLINE void store(float* p, const F32x16& v, size_t count) {
    float all[kLanes];
    store(all, v);
    __builtin_memcpy(p, all, count * sizeof(float));
}

// Sum of the lanes, by halves.
ALWAYS_INLINE float sum(const F32x16& v) {
    typedef float F32x4 __attribute__((vector_size(16)));
    F32x4 quarter[4];
    __builtin_memcpy(quarter, &v, sizeof v);
    const F32x4 four = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace
