// linear_w4a16: bf16 rows, as its own `prepare` lays them, times a weight of linear_w4a8 (../linear_w4a8/contract.h).
// Rows are not quantized. A step of a decoder reads no more than the codes.
//
//   t[m, n, g] = sum_k x[m, k] * level(code[n, k]), k in group g: f32, in two sums that are added at the end, of the
//                even and of the odd runs of four values of K; the order within them is that of the rows;
//                then, if the weight has zero points,
//   t[m, n, g] = fma(sum_m[m, g], middle - zero[n, g / per], t)
//   y[m, n]    = fma(t, scale_n[n, g / per], y[m, n]), from 0 on, g in order;
//                then, if the weight has minima, before the next g,
//   y[m, n]    = fma(sum_m[m, g], minimum_n[n, g / per], y[m, n]);
//                + bias[n], then the activation
//
// level(code) = code - middle, where middle = 2^(bits - 1), or 0 if there are minima; or levels[code].
//
// Every step is one f32 operation: a product of t is exact, for whole numbers. So y has the same bits (before a GELU,
// which is as exact as the output needs) for every number of rows and every range of rows and columns, and in all
// variants but avx512bf16 and amx: there a product may be rounded before it is added, a subnormal may count as zero,
// and in amx the order within t is another. Who takes amx for many rows and another variant for few gives that up.
//
//   rows     [M, K] bf16, row m at rows + m * row_stride (elements, any alignment); each four values of K lie in the
//            order 0 2 1 3: bytes 0 and 2 of a word's 32 bits, shifted and looked up as two 16-bit lanes, are a pair
//   sum_m    [M, G] f32, sums of a group's values; row m at m * group_stride (elements). G = K / group
//   weight   as there
//   levels   [2^bits] bf16, any alignment, or null. If they are given, there are neither zero points nor minima
//   bias     [N16] f32, 64-byte aligned
//   y        [M, N] f32 or bf16 (nearest, half to even), as `output` says, row m at y + m * out_stride (elements)
//
// `prepare` makes rows and sums of x, [M, K] f32, or bf16 if that is set, row m at x + m * x_stride (elements, any
// alignment): values to the nearest bf16, half to even; sums of the rounded values, f32, in eight parts, k % 8, which
// are added as ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)): the same bits in every variant.
//
// Rows [row_begin, row_end), any of them, of column blocks [block_begin, block_end) of 16 are written. No allocation,
// threads or state. Shapes and alignment are checked in Python.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "linear/output.h"
#include "linear_w4a8/contract.h"

struct PrepareW4A16 {
    const void* x;
    bool bf16;
    size_t x_stride;
    size_t k, group;
    uint16_t* rows;
    size_t row_stride;
    float* sum;
    size_t group_stride;
};

struct LinearW4A16 {
    const uint16_t* rows;
    size_t row_stride;
    const float* sum_m;
    size_t group_stride;
    Wna8 weight;
    const uint16_t* levels;
    const float* bias;
    void* y;
    size_t out_stride;
    size_t n;
    Activation activation;
    Output output;
};

using PrepareW4A16Fn = void(const PrepareW4A16*, size_t row_begin, size_t row_end);
using LinearW4A16Fn = void(const LinearW4A16*, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end);

extern "C" {
PrepareW4A16Fn prepare_w4a16_scalar, prepare_w4a16_avx2, prepare_w4a16_avx512;
LinearW4A16Fn linear_w4a16_scalar, linear_w4a16_avx2, linear_w4a16_avx512, linear_w4a16_avx512bf16, linear_w4a16_amx;
}

// A variant.
struct W4A16Kernels {
    PrepareW4A16Fn* prepare;
    LinearW4A16Fn* multiply;
};
