// linear_w8a8, the definition in C++. See contract.h.
#include <math.h>
#include <string.h>

#include "contract.h"

static float gelu(float x) {
    const float a = fabsf(x) < kGeluEnd ? fabsf(x) : kGeluEnd;
    float log2_q = kGeluTail[8];
    for (int i = 7; i >= 0; --i) log2_q = fmaf(log2_q, a, kGeluTail[i]);
    const float whole = rintf(log2_q), part = log2_q - whole;
    float q = kExp2[5];
    for (int i = 4; i >= 0; --i) q = fmaf(q, part, kExp2[i]);
    return fmaf(-a, ldexpf(q, (int)whole), x < 0.0f ? 0.0f : x);  // a NaN is not below zero, and stays
}

static uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return isnan(x) ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void linear_w8a8_scalar(const LinearW8A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    const size_t end = block_end * kBlock < p->n ? block_end * kBlock : p->n;
    for (size_t m = row_begin; m < row_end; ++m) {
        const uint8_t* codes = p->codes + m * p->code_stride;
        for (size_t n = block_begin * kBlock; n < end; ++n) {
            const int8_t* weight = p->weight + n / kBlock * kBlock * p->k_padded + n % kBlock * kGroup;
            int32_t sum = 0;
            for (size_t k = 0; k < p->k_padded; ++k) {
                sum += (int32_t)codes[k] * weight[k / kGroup * kBlock * kGroup + k % kGroup];
            }
            if (p->sums) {
                p->sums[m * p->out_stride + n] = sum;
                continue;
            }
            const float t = (float)(sum - (p->zero_m[m] + 128) * p->colsum[n]);
            const float linear = fmaf(t, p->scale_m[m] * p->scale_n[n], p->bias[n]),
                        y = p->gelu ? gelu(linear) : linear;
            if (p->bf16) {
                ((uint16_t*)p->y)[m * p->out_stride + n] = to_bf16(y);
            } else {
                ((float*)p->y)[m * p->out_stride + n] = y;
            }
        }
    }
}
