// quantize_groups: float rows -> signed 8-bit codes, with one scale for each group of K, and the sum of its codes: the
// rows of linear_w4a8.
//
//   x            [M, K] f32, or bf16 if that is set, row m starts at x + m * x_stride (in elements, any alignment)
//   group        K values of a group: a multiple of 8 that divides K, 128 at most. G = K / group
//   by_row       whether all groups of a row have one scale, that of the row; if it is not finite, none of them is
//   shift, multiplier
//                [K] f32, any alignment, or both null. With them (x - shift[k]) * multiplier[k], two f32 operations,
//                is quantized, wherever x stands below
//   codes        [M, >= K64] s8 in [-127, 127], row m at codes + m * code_stride; K64 = K rounded up to 64; bytes
//                [K, K64) become 0
//   scale        [M, G] f32 = max|x| / 127 of the group, or of the row; sum [M, G] i32 = sum of its codes. Row m of
//                both is at m * group_stride (elements)
//
// code = rint(x * inv) with inv = 1 / scale; every step one f32 operation, rint half to even.
//
// A group of zeros has scale 1. A scale below FLT_MIN is raised to it, so that inv is finite. A group that holds a NaN
// or an infinity has scale NaN, codes 0 and sum 0: what is computed from it is NaN, never silently wrong. Only rows
// [row_begin, row_end) are written. No allocation, threads or state. Shapes are checked in Python.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct QuantizeGroups {
    const void* x;
    bool bf16;
    size_t x_stride;
    size_t k, group;
    bool by_row;
    const float* shift;       // null exactly where multiplier is
    const float* multiplier;  // normally 1 / (the scale of each input feature)
    int8_t* codes;
    size_t code_stride;
    float* scale;
    int32_t* sum;
    size_t group_stride;
};

using QuantizeGroupsFn = void(const QuantizeGroups*, size_t row_begin, size_t row_end);

extern "C" QuantizeGroupsFn quantize_groups_scalar, quantize_groups_avx2, quantize_groups_avx512;
