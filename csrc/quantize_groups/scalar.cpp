// quantize_groups, the definition in C++. See contract.h.
#include <float.h>
#include <math.h>

#include "contract.h"
#include "vectors/bf16.h"

static float value(const QuantizeGroups& p, size_t m, size_t k) {
    const size_t at = m * p.x_stride + k;
    const float x = p.bf16 ? widen(((const uint16_t*)p.x)[at]) : ((const float*)p.x)[at];
    return p.multiplier ? (x - p.shift[k]) * p.multiplier[k] : x;
}

static void quantize_group(const QuantizeGroups& p, size_t m, size_t g) {
    const size_t begin = g * p.group, end = begin + p.group;
    float absmax = 0.0f;
    bool finite = true;
    for (size_t k = begin; k < end; ++k) {
        const float x = fabsf(value(p, m, k));
        finite = finite && isfinite(x);
        absmax = x > absmax ? x : absmax;
    }
    float scale = absmax == 0.0f ? 1.0f : absmax / 127.0f;
    if (scale < FLT_MIN) scale = FLT_MIN;
    const float inv = 1.0f / scale;
    int32_t sum = 0;
    for (size_t k = begin; k < end; ++k) {
        const int32_t code = finite ? (int32_t)rintf(value(p, m, k) * inv) : 0;
        p.codes[m * p.code_stride + k] = (int8_t)code;
        sum += code;
    }
    p.scale[m * p.group_stride + g] = finite ? scale : NAN;
    p.sum[m * p.group_stride + g] = sum;
}

void quantize_groups_scalar(const QuantizeGroups* p, size_t row_begin, size_t row_end) {
    for (size_t m = row_begin; m < row_end; ++m) {
        for (size_t g = 0; g < p->k / p->group; ++g) quantize_group(*p, m, g);
        for (size_t k = p->k; k % 64 != 0; ++k) p->codes[m * p->code_stride + k] = 0;
    }
}
