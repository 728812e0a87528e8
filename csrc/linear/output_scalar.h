// From f32 to a linear's output: GELU and bf16, their definition. Everything is internal to the file that includes it.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "linear/output.h"
#include "vectors/bf16.h"
#include "vectors/gelu.h"

static float gelu(float x) {
    const float a = fabsf(x) < kGeluEnd ? fabsf(x) : kGeluEnd;
    float log2_q = kGeluTail[8];
    for (int i = 7; i >= 0; --i) log2_q = fmaf(log2_q, a, kGeluTail[i]);
    const float whole = rintf(log2_q), part = log2_q - whole;
    float q = kExp2[5];
    for (int i = 4; i >= 0; --i) q = fmaf(q, part, kExp2[i]);
    return fmaf(-a, ldexpf(q, (int)whole), x < 0.0f ? 0.0f : x);  // a NaN is not below zero, and stays
}

static float activated(Activation activation, float x) { return activation == Activation::kGelu ? gelu(x) : x; }

// Element `at` of y, f32 or bf16.
template <class Linear>
static void write_output(const Linear& p, float linear, size_t at) {
    const float y = activated(p.activation, linear);
    if (p.output == Output::kBf16) {
        ((uint16_t*)p.y)[at] = to_bf16(y);
    } else {
        ((float*)p.y)[at] = y;
    }
}
