// Sixteen floats in the compiler's own vector type. One source for every instruction set: each variant's flags say what
// the operations become, and since lanes and order are the same in all, so are the results, to the last bit.
// Everything is internal to the file that includes it.
#pragma once
#include <stddef.h>

namespace {

typedef float F32x16 __attribute__((vector_size(64)));

constexpr size_t kLanes = 16;

inline __attribute__((always_inline)) F32x16 load(const float* p) {
    F32x16 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

inline __attribute__((always_inline)) void store(float* p, const F32x16& v) { __builtin_memcpy(p, &v, sizeof v); }

// The first `count` of sixteen; the other lanes are 0, and are not stored.
inline __attribute__((always_inline)) F32x16 load(const float* p, size_t count) {
    if (count >= kLanes) return load(p);
    F32x16 v = {};
    __builtin_memcpy(&v, p, count * sizeof(float));
    return v;
}

inline __attribute__((always_inline)) void store(float* p, const F32x16& v, size_t count) {
    if (count >= kLanes) return store(p, v);
    __builtin_memcpy(p, &v, count * sizeof(float));
}

// Sum of the lanes, by halves.
inline __attribute__((always_inline)) float sum(const F32x16& v) {
    typedef float F32x8 __attribute__((vector_size(32)));
    typedef float F32x4 __attribute__((vector_size(16)));
    const F32x8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                        __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    const F32x4 four =
        __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace
