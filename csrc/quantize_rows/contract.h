// quantize_rows: float rows -> unsigned 8-bit codes, with one scale and one zero point per row.
//
//   x            [M, K] f32, or bf16 if that is set, row m starts at x + m * x_stride (in elements, any alignment)
//   shift,       [K rounded up to 64] f32, zero where padded, any alignment, or both null. What is quantized is then
//   multiplier   (x - shift[k]) * multiplier[k], two f32 operations, wherever x stands below
//   codes        [M, >=K] u8 = code + 128, row m at codes + m * code_stride; bytes [K, K rounded up to 64) get the code
//                of 0
//   scale        [M] f32; zero_point [M] i32 in [-128, 127]
//
//   kAsymmetric  lo = min(x, 0), hi = max(x, 0), scale = (hi - lo) / 255,
//                zero_point = clip(rint(-128 - lo * inv), -128, 127)
//   kSymmetric   scale = max|x| / 127, zero_point = 0, codes in [-127, 127]
//   kStatic      scale and zero_point are given, the same for every row; codes in [code_min, 127]
//
// code = clip(rint(x * inv) + zero_point, code_min, 127) with inv = 1 / scale; every step one f32 operation, rint half
// to even.
//
// A row of zeros has scale 1. A scale below FLT_MIN is raised to it, so that inv is finite. A row that holds a NaN or
// an infinity, or whose hi - lo overflows, has scale NaN, codes 128 and zero_point 0: what is computed from it is NaN,
// never silently wrong. Only rows [row_begin, row_end) are written. No allocation, threads or state. Shapes are checked
// in Python.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum class QuantizeMode { kAsymmetric, kSymmetric, kStatic };

struct QuantizeRows {
    const void* x;
    bool bf16;
    size_t x_stride;
    size_t k;
    const float* shift;       // null exactly where multiplier is
    const float* multiplier;  // normally 1 / (the scale of each input feature)
    uint8_t* codes;
    size_t code_stride;
    float* scale;
    int32_t* zero_point;
    QuantizeMode mode;
    float static_scale;         // kStatic only; normal and positive
    int32_t static_zero_point;  // kStatic only
    int32_t code_min;           // -128, or -127 on a symmetric grid
};

using QuantizeRowsFn = void(const QuantizeRows*, size_t row_begin, size_t row_end);

extern "C" QuantizeRowsFn quantize_rows_scalar, quantize_rows_avx2, quantize_rows_avx512;
