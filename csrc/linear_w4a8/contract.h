// linear_w4a8: int8 rows, as quantize_groups makes them, times a weight of codes of 4 bits or fewer, with scales per
// group of K:
//
//   t[m, n, g] = f32(sum_k a[m, k] * w[n, k]), k in group g: exact in int32, and in f32;
//                w[n, k] = code[n, k] - zero[n, g / per], or levels[code[n, k]]; in 1 bit 2 code[n, k] - 1
//   y[m, n]    = fma(t, scale_m[m, g] * scale_n[n, g / per], y[m, n]), from 0 on, g in order;
//                then, if the weight has minima, before the next g,
//   y[m, n]    = fma(f32(sum_m[m, g]), scale_m[m, g] * minimum_n[n, g / per], y[m, n]);
//                + bias[n], then the activation
//
// Every step is one f32 operation. So y has the same bits (before a GELU, which is as exact as the output needs) for
// every number of rows, every range of rows and columns, and every variant.
//
//   a        [M, K] s8 in [-127, 127], row m at codes + m * code_stride, any alignment
//   scale_m  [M, G] f32, NaN for a group that was not finite; sum_m [M, G] i32 = sum of the group's codes; row m of
//            both at m * group_stride (elements). G = K / group
//   codes    [N16 / 16, K / V, L, 16, 4] u8, 64-byte aligned: words of V values of K. A word is L vectors of 64 bytes,
//            four for each of 16 columns. Byte j of a vector holds value j of several runs of four values of K, so
//            that a shift and an AND make the u8 operand of a vpdpbusd, whose s8 operand is four codes of a row:
//
//              bits  V  L  runs in vector l, from bit 0 on
//              4     8  1  0 and 1
//              2    16  1  0 to 3
//              1    32  1  0 to 7
//              3    32  3  2 l and 2 l + 1; in the two bits left, if l = 0 the lower bits of run 6, if l = 1 those of
//                          run 7, if l = 2 the third bit of run 6, then that of run 7
//
//            Any code where padded
//   levels   [16] s8, any alignment, or null. If they are given, bits = 4, and there are neither zero points nor minima
//   scale_n  [N16 / 16, G / per, 16] f32, or bf16 if that is set; finite, 64-byte aligned
//   zero_n   likewise, u8, 128 at most, 16-byte aligned, or null: every zero point is 2^(bits - 1), that of symmetric
//            codes, or 0 if there are minima. Codes of 1 bit have neither
//   minimum_n
//            like scale_n, and of its type, or null; null if there are zero points. Any value where these are padded
//   group    K values with one scale_m: a multiple of V that divides K, 128 at most
//   per      such groups that share a scale of the weight; it divides G
//   bias     [N16] f32, 64-byte aligned
//   y        [M, N] f32 or bf16 (nearest, half to even), as `output` says, row m at y + m * out_stride (elements)
//
// Rows [row_begin, row_end), any of them, of column blocks [block_begin, block_end) of 16 are written. No allocation,
// threads or state. Shapes and alignment are checked in Python.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "linear/output.h"

struct Wna8 {
    const uint8_t* codes;
    int bits;
    const int8_t* levels;
    const void* scale;
    bool bf16_scale;
    const uint8_t* zero;
    const void* minimum;
    size_t k, group, per;
};

struct LinearW4A8 {
    const int8_t* codes;
    size_t code_stride;
    const float* scale_m;
    const int32_t* sum_m;
    size_t group_stride;
    Wna8 weight;
    const float* bias;
    void* y;
    size_t out_stride;
    size_t n;
    Activation activation;
    Output output;
};

using LinearW4A8Fn = void(const LinearW4A8*, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end);

extern "C" LinearW4A8Fn linear_w4a8_scalar, linear_w4a8_avx2, linear_w4a8_avxvnni, linear_w4a8_avx512vnni,
    linear_w4a8_amx;
