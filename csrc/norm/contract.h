// norm: s = x + residual, y = (s - mean(s)) / sqrt(mean((s - mean(s))^2) + eps) * weight + bias, row by row; where
// rows are not centred, RMSNorm (Zhang and Sennrich 2019, 1910.07467), 0 stands in the place of mean(s)
//
//   x          [M, N] f32; residual the same, or null for 0
//   sum        null, or [M, N] f32 gets s
//   y          [M, N] f32; may be x, residual or sum's memory only if it is exactly that buffer
//   weight     [N] f32; bias [N] f32, or null for 0
//
// All rows are `stride` elements apart, in every one of them, any alignment. Sums in f32, by sixteen lanes, the same in
// every variant. Only rows [row_begin, row_end) are read and written. No allocation, threads or state.
#pragma once
#include <stddef.h>

struct Norm {
    const float* x;
    const float* residual;
    float* sum;
    float* y;
    const float* weight;
    const float* bias;
    size_t stride;
    size_t n;
    float eps;
    bool centred;
};

using NormFn = void(const Norm*, size_t row_begin, size_t row_end);

extern "C" NormFn norm_scalar, norm_avx2, norm_avx512;
