// linear_w8a8, the definition in C++. See contract.h.
#include "contract.h"
#include "linear/output_scalar.h"

// The code of column n.
static uint8_t to_code(const OutputGrid& g, float y, size_t n) {
    if (g.multiplier) y = (y - g.shift[n]) * g.multiplier[n];
    float r = rintf(y * (1.0f / g.scale));
    r = r > -512.0f ? (r < 512.0f ? r : 512.0f) : -512.0f;  // the integer sum cannot overflow; a NaN is some number
    const int32_t code = (int32_t)r + g.zero_point;
    return (uint8_t)((code < g.code_min ? g.code_min : code > 127 ? 127 : code) + 128);
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
            const size_t at = m * p->out_stride + n;
            if (p->output == Output::kSums) {
                ((int32_t*)p->y)[at] = sum;
                continue;
            }
            const float t = (float)(sum - (p->zero_m[m] + 128) * p->colsum[n]);
            const float linear = fmaf(t, p->scale_m[m] * p->scale_n[n], p->bias[n]);
            if (p->output == Output::kCodes) {
                ((uint8_t*)p->y)[at] = to_code(p->grid, activated(p->activation, linear), n);
            } else {
                write_output(*p, linear, at);
            }
        }
    }
}
