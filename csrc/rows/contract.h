// rows: what operators of the engine do value by value, one row a call. Any alignment; no allocation, threads or state.
//
//   embed         y = word * factor + position + type [n] f32; the word is f32, bf16, or int8 with a scale; the others
//                 may be null
//   round         y = x, to the nearest bf16, half to even; a NaN stays one
//   widen         y = x, bf16 to f32
//   transform     y = (x - shift) * multiplier, f32; y may be x
//   place         y = bf16((code - 128 - zero) * scale) of u8 codes
//   activate      x = f(x), in place, f32 or bf16
//   gate          y = f(a) * b, bf16 to f32
//   rotate        of each head's first `size` values the first half with the second, in place, bf16:
//                 a, b = a * cos - b * sin, b * cos + a * sin; cos, sin [size / 2] f32
//   convolve      of each feature: product = bf16(b * x); y = bf16(c * (bias + the sum of weight * product over the
//                 rows before, the oldest first, and this one)), b, c, x, product, y bf16
//
// The operations on a value are f32, in the same order in every variant: all give the same bits. Functions err by less
// than 5e-7 where their result is below 1, by as much of it where it is above; tanh by as much of itself. What bf16
// rounds away comes on top.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum class Function { kIdentity, kRelu, kTanh, kGeluTanh, kSilu, kRelu2 };

enum class WordKind { kF32, kBf16, kInt8 };

struct EmbedRow {
    const void* word;
    WordKind kind;
    float scale;  // of int8
    const float* position;
    const float* type;
    float factor;
};

// A row of a gated convolution over time of each feature by itself. taps: products that a row is made of, with its own;
// weight: of tap t, the oldest first, at weight + t * weight_stride. before [taps - 1]: the products of the rows
// before; null where there is none, which adds nothing. bias: or null.
struct ConvolveRow {
    const uint16_t* b;
    const uint16_t* c;
    const uint16_t* x;
    size_t taps;
    const float* weight;
    size_t weight_stride;
    const float* bias;
    const uint16_t* const* before;
    uint16_t* product;
    uint16_t* y;
};

struct RowOperators {
    void (*embed)(const EmbedRow& row, float* y, size_t n);
    void (*round)(const float* x, uint16_t* y, size_t n);
    void (*widen)(const uint16_t* x, float* y, size_t n);
    void (*transform)(const float* x, const float* shift, const float* multiplier, float* y, size_t n);
    void (*place)(const uint8_t* codes, float scale, int32_t zero, uint16_t* y, size_t n);
    void (*activate)(float* x, Function function, size_t n);
    void (*activate_bf16)(uint16_t* x, Function function, size_t n);
    void (*gate)(const uint16_t* a, const uint16_t* b, Function function, float* y, size_t n);
    void (*rotate)(uint16_t* x, size_t heads, size_t head_size, size_t size, const float* cos, const float* sin);
    void (*convolve)(const ConvolveRow& row, size_t n);
};

// The variants.
extern const RowOperators kRowsScalar, kRowsAvx2, kRowsAvx512;
