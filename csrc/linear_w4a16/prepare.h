// The rows of linear_w4a16, in any instruction set: eight values at a time, as its flags say. Everything is internal to
// the file that includes it.
#pragma once
#include "contract.h"
#include "vectors/bf16.h"

namespace {

typedef float F32x8 __attribute__((vector_size(32)));
typedef uint32_t U32x8 __attribute__((vector_size(32)));
typedef uint16_t U16x8 __attribute__((vector_size(16)));

ALWAYS_INLINE U16x8 load_bf16(const uint16_t* x) {
    U16x8 v;
    memcpy(&v, x, sizeof v);
    return v;
}

// To the nearest, half to even; of every NaN the same one.
ALWAYS_INLINE U16x8 load_bf16(const float* x) {
    F32x8 v;
    memcpy(&v, x, sizeof v);
    const U32x8 bits = (U32x8)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return __builtin_convertvector(v != v ? 0x7fc0 - U32x8{} : rounded, U16x8);
}

template <class T>
void prepare_rows(const PrepareW4A16& p, size_t row_begin, size_t row_end) {
    for (size_t m = row_begin; m < row_end; ++m) {
        const T* x = (const T*)p.x + m * p.x_stride;
        uint16_t* row = p.rows + m * p.row_stride;
        for (size_t g = 0; g < p.k / p.group; ++g) {
            F32x8 part = {};
            for (size_t end = (g + 1) * p.group, k = g * p.group; k < end; k += 8) {
                const U16x8 v = load_bf16(x + k);
                const U16x8 lying = __builtin_shuffle(v, U16x8{0, 2, 1, 3, 4, 6, 5, 7});
                memcpy(row + k, &lying, sizeof lying);
                part += (F32x8)(__builtin_convertvector(v, U32x8) << 16);
            }
            p.sum[m * p.group_stride + g] =
                ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
        }
    }
}

inline void prepare_any_rows(const PrepareW4A16& p, size_t row_begin, size_t row_end) {
    (p.bf16 ? prepare_rows<uint16_t> : prepare_rows<float>)(p, row_begin, row_end);
}

}  // namespace
