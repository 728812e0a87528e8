// linear_bf16: y[m, n] = sum_k x[m, k] * weight[n, k] + bias[n], then the activation
//
//   x        [M, K] bf16, row m at x + m * x_stride (elements, any alignment); values beyond K, up to the next multiple
//            of 32, must be readable and finite (the weight is zero there)
//   weight   [N16 / 16, K32 / 2, 16, 2] bf16, zero where padded, 64-byte aligned: two K values of sixteen columns are
//            the 64 bytes that one vdpbf16ps takes, and sixteen of those are the B tile of tdpbf16ps
//   bias     [N16] f32, 64-byte aligned
//   y        [M, N] f32 or bf16 (nearest, half to even), as `output` says, row m at y + m * out_stride (elements)
//
// Products of bf16 values summed in f32, the order of the sum free but the same for every M and every range of rows and
// columns; a subnormal may count as zero (vdpbf16ps and tdpbf16ps). begin and end of ranges as in linear_w8a8: rows
// [row_begin, row_end), row_begin a multiple of 16, of column blocks [block_begin, block_end) of 16. Rows of x up to
// the next multiple of 16 must be readable. No allocation, threads or state.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "linear/output.h"

struct LinearBf16 {
    const uint16_t* x;
    size_t x_stride;
    const uint16_t* weight;
    const float* bias;
    void* y;
    size_t out_stride;
    size_t n;
    size_t k_padded;  // K32
    Activation activation;
    Output output;
};

using LinearBf16Fn = void(const LinearBf16*, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end);

// avx512 widens x and weights to f32, avx512bf16 multiplies them as they are.
extern "C" LinearBf16Fn linear_bf16_scalar, linear_bf16_avx2, linear_bf16_avx512, linear_bf16_avx512bf16,
    linear_bf16_amx;
