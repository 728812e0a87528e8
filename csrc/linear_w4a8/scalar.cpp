// linear_w4a8, the definition in C++. See contract.h.
#include "scalar.h"

#include "linear/output_scalar.h"

template <int bits>
static float product(const LinearW4A8& p, size_t m, size_t n) {
    const Wna8& w = p.weight;
    const size_t groups = w.k / w.group, block = n / 16, column = n % 16;
    const uint8_t* codes = w.codes + block * (w.k / Word<bits>::values * Word<bits>::bytes);
    float y = 0.0f;
    for (size_t g = 0; g < groups; ++g) {
        const size_t at = (block * (groups / w.per) + g / w.per) * 16 + column;
        const int32_t zero = w.zero ? w.zero[at] : w.minimum ? 0 : 1 << (bits - 1);
        int32_t sum = 0;
        for (size_t k = g * w.group; k < (g + 1) * w.group; ++k) {
            const int32_t held = code<bits>(codes, column, k);
            const int32_t value = w.levels ? w.levels[held] : (bits == 1 ? 2 * held : held) - zero;
            sum += p.codes[m * p.code_stride + k] * value;
        }
        const float scale_m = p.scale_m[m * p.group_stride + g];
        y = fmaf((float)sum, scale_m * of_group(w, w.scale, at), y);
        if (w.minimum) y = fmaf((float)p.sum_m[m * p.group_stride + g], scale_m * of_group(w, w.minimum, at), y);
    }
    return y + p.bias[n];
}

void linear_w4a8_scalar(const LinearW4A8* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    const size_t end = block_end * 16 < p->n ? block_end * 16 : p->n;
    for_codes(p->weight, [&](auto bits, auto) {
        for (size_t m = row_begin; m < row_end; ++m) {
            for (size_t n = block_begin * 16; n < end; ++n) {
                write_output(*p, product<bits.value>(*p, m, n), m * p->out_stride + n);
            }
        }
    });
}
