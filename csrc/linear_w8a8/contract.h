// linear_w8a8: y[m, n] = scale_m[m] * scale_n[n] * sum_k (codes[m, k] - 128 - zero_m[m]) * weight[n, k] + bias[n], then
// the activation
//
//   codes    [M up to 16, K64] u8, row m at codes + m * code_stride; K64 = K rounded up to 64, M up to 16 likewise. The
//            padding must be readable; its content does not matter (the weight is zero there, surplus rows are dropped)
//   scale_m  [M] f32; zero_m [M] i32 in [-128, 127]
//   weight   [N16 / 16, K64 / 4, 16, 4] s8, zero where padded, 64-byte aligned: four K values of sixteen columns
//            are the 64 bytes that one vpdpbusd takes, and sixteen of those are the B tile of tdpbusd
//   colsum   [N16] i32 = sum_k weight[n, k];  scale_n, bias [N16] f32;  all 64-byte aligned, any value where padded
//   y        [M, N], row m at y + m * out_stride (elements), of what `output` says:
//            kF32, kBf16 (nearest, half to even)
//            kCodes u8: of the f32 values as quantize_rows gives them on a static grid (quantize_rows/contract.h), but
//                   clipped where they are infinite, and without meaning where they are NaN, as they are if scale_m is:
//                   who reads codes needs a scale NaN for such a row, and a bias that is finite
//            kSums  i32: sum_k codes * weight, of which scales, bias and activation make nothing
//
// Order of operations, the same in every variant: the integer sum is exact, t = f32(sum - (zero_m + 128) * colsum),
// y = fma(t, scale_m * scale_n, bias). |sum| <= 255 * 128 * K stays inside int32 up to K = 65793; the sum with the zero
// point taken off obeys the same bound. A GELU that becomes bf16 or codes may have fewer terms (gelu.h): an eighth of a
// code at most on a grid that includes 0. row_begin is a multiple of 16. Only rows [row_begin, row_end) of column
// blocks [block_begin, block_end) of 16 are written. No allocation, threads or state. Shapes and alignment are checked
// in Python.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "linear/output.h"

// The static grid of an output that holds codes; shift and multiplier [N16] f32, any alignment, or both null.
struct OutputGrid {
    const float* shift;
    const float* multiplier;
    float scale;  // normal and positive
    int32_t zero_point, code_min;
};

struct LinearW8A8 {
    const uint8_t* codes;
    size_t code_stride;
    const float* scale_m;
    const int32_t* zero_m;
    const int8_t* weight;
    const int32_t* colsum;
    const float* scale_n;
    const float* bias;
    void* y;
    size_t out_stride;  // elements
    size_t n;
    size_t k_padded;  // K64
    Activation activation;
    Output output;
    OutputGrid grid = {};  // of kCodes
};

// Columns of a block, K values of a group, and the number to which K is padded.
enum { kBlock = 16, kGroup = 4, kPadK = 64 };

// Bytes between rows of codes. Rows a multiple of 512 bytes apart would share few L1 sets; a line more spreads them.
static inline size_t code_stride(size_t k) {
    const size_t padded = (k + kPadK - 1) / kPadK * kPadK;
    return padded % 512 ? padded : padded + 64;
}

using LinearW8A8Fn = void(const LinearW8A8*, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end);

extern "C" LinearW8A8Fn linear_w8a8_scalar, linear_w8a8_avx2, linear_w8a8_avxvnni, linear_w8a8_avx512vnni,
    linear_w8a8_avx512bf16, linear_w8a8_amx;
