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

// The scale of values [begin, end), or NaN.
static float scale_of(const QuantizeGroups& p, size_t m, size_t begin, size_t end) {
    float absmax = 0.0f;
    bool finite = true;
    for (size_t k = begin; k < end; ++k) {
        const float x = fabsf(value(p, m, k));
        finite = finite && isfinite(x);
        absmax = x > absmax ? x : absmax;
    }
    const float scale = absmax == 0.0f ? 1.0f : absmax / 127.0f;
    return !finite ? NAN : scale < FLT_MIN ? FLT_MIN : scale;
}

static void quantize_group(const QuantizeGroups& p, size_t m, size_t g, float scale) {
    const bool finite = isfinite(scale);
    const float inv = 1.0f / scale;
    int32_t sum = 0;
    for (size_t k = g * p.group; k < (g + 1) * p.group; ++k) {
        const int32_t code = finite ? (int32_t)rintf(value(p, m, k) * inv) : 0;
        p.codes[m * p.code_stride + k] = (int8_t)code;
        sum += code;
    }
    p.scale[m * p.group_stride + g] = scale;
    p.sum[m * p.group_stride + g] = sum;
}

void quantize_groups_scalar(const QuantizeGroups* p, size_t row_begin, size_t row_end) {
    for (size_t m = row_begin; m < row_end; ++m) {
        float scale = p->by_row ? scale_of(*p, m, 0, p->k) : 0.0f;
        for (size_t g = 0; g < p->k / p->group; ++g) {
            if (!p->by_row) scale = scale_of(*p, m, g * p->group, (g + 1) * p->group);
            quantize_group(*p, m, g, scale);
        }
        for (size_t k = p->k; k % 64 != 0; ++k) p->codes[m * p->code_stride + k] = 0;
    }
}
