// linear_wna16: linear_bf16 (../linear_bf16/contract.h) of a weight that is held in 4 or 8 bits,
//
//   w[n, k] = bf16((level(code[n, k]) - zero[n, k / group]) * scale[n, k / group])
//
// each step one f32 operation, then nearest, half to even. Some columns at a time become a panel, a weight of
// linear_bf16, in the caller's scratch, which stays in L2 while all rows are multiplied by it. So a variant is an
// `unpack` alone, and all variants make the same panel, bit by bit.
//
//   codes    4 bits: [N16 / 16, K32 / 8, 16, 4] u8: eight K values of one column are four bytes, lowest bits first;
//                    level(code) = levels[code]
//            8 bits: [N16 / 16, K64 / 4, 16, 4] s8, the weight of linear_w8a8; level(code) = code. levels is null
//            64-byte aligned, any code where padded: a panel is zero beyond K
//   levels   [16] f32, finite
//   scale    [N16 / 16, G, 16] f32, finite, zero where padded, G = K / group; all 64-byte aligned
//   zero     [N16 / 16, G, 16] s8, 16-byte aligned, or null for zeros
//   group    K values that share a scale: a multiple of 8 that divides K, or K itself
//   panel    [count, K32 / 2, 16, 2] bf16, 64-byte aligned: blocks [block, block + count) of 16 columns
//   scratch  wna16_scratch_bytes(K), 64-byte aligned
//
// Rows and blocks to compute as in linear_bf16. No allocation, threads or state. Shapes and alignment are checked in
// Python.
#pragma once
#include "linear_bf16/contract.h"

struct Wna16 {
    const uint8_t* codes;
    const float* levels;
    const float* scale;
    const int8_t* zero;
    size_t k, group;
};

// linear.weight is left to the operator.
struct LinearWna16 {
    LinearBf16 linear;
    Wna16 weight;
};

using UnpackWna16Fn = void(const Wna16*, size_t block, size_t count, uint16_t* panel);

extern "C" UnpackWna16Fn unpack_wna16_scalar, unpack_wna16_avx2, unpack_wna16_avx512;

size_t wna16_scratch_bytes(size_t k);
