// quantize_rows, the definition in C++. See contract.h.
#include <float.h>
#include <math.h>

#include "contract.h"
#include "vectors/bf16.h"

static float stored(const QuantizeRows& p, size_t m, size_t i) {
    const size_t at = m * p.x_stride + i;
    if (!p.bf16) return ((const float*)p.x)[at];
    return widen(((const uint16_t*)p.x)[at]);
}

static float value(const QuantizeRows& p, size_t m, size_t i) {
    const float x = stored(p, m, i);
    return p.multiplier ? (x - p.shift[i]) * p.multiplier[i] : x;
}

static void quantize_row(const QuantizeRows& p, size_t m) {
    uint8_t* codes = p.codes + m * p.code_stride;
    float lo = 0.0f, hi = 0.0f;
    bool finite = true;
    for (size_t i = 0; i < p.k; ++i) {
        const float x = value(p, m, i);
        finite = finite && isfinite(x);
        lo = x < lo ? x : lo;
        hi = x > hi ? x : hi;
    }
    const float absmax = hi > -lo ? hi : -lo;
    const float range = p.mode == QuantizeMode::kSymmetric ? absmax : hi - lo;
    finite = finite && (p.mode == QuantizeMode::kStatic || isfinite(range));

    float scale = p.mode == QuantizeMode::kSymmetric ? range / 127.0f : range / 255.0f;
    if (range == 0.0f) scale = 1.0f;
    if (scale < FLT_MIN) scale = FLT_MIN;
    if (p.mode == QuantizeMode::kStatic) scale = p.static_scale;
    const float inv = 1.0f / scale;

    int32_t zero = p.static_zero_point;
    if (p.mode == QuantizeMode::kSymmetric) zero = 0;
    if (p.mode == QuantizeMode::kAsymmetric) {
        const float z = rintf(-128.0f - lo * inv);
        zero = z < -128.0f ? -128 : z > 127.0f ? 127 : (int32_t)z;
    }

    for (size_t i = 0; i < p.k; ++i) {
        float r = finite ? rintf(value(p, m, i) * inv) : 0.0f;
        r = r < -512.0f ? -512.0f : r > 512.0f ? 512.0f : r;  // so that the integer sum below cannot overflow
        int32_t code = (int32_t)r + (finite ? zero : 0);
        code = code < p.code_min ? p.code_min : code > 127 ? 127 : code;
        codes[i] = (uint8_t)(code + 128);
    }
    p.scale[m] = finite ? scale : NAN;
    p.zero_point[m] = finite ? zero : 0;
    for (size_t i = p.k; i % 64 != 0; ++i) codes[i] = (uint8_t)(p.zero_point[m] + 128);
}

void quantize_rows_scalar(const QuantizeRows* p, size_t row_begin, size_t row_end) {
    for (size_t m = row_begin; m < row_end; ++m) quantize_row(*p, m);
}
