// linear_w4a16, the definition in C++. See contract.h.
#include "linear_w4a8/scalar.h"

#include "levels.h"
#include "linear/output_scalar.h"
#include "prepare.h"

template <int bits>
static float product(const LinearW4A16& p, const Levels& levels, size_t m, size_t n) {
    static constexpr size_t order[4] = {0, 2, 1, 3};
    const Wna8& w = p.weight;
    const size_t groups = w.k / w.group, block = n / 16, column = n % 16;
    const uint8_t* codes = w.codes + block * (w.k / Word<bits>::values * Word<bits>::bytes);
    const uint16_t* row = p.rows + m * p.row_stride;
    float y = 0.0f;
    for (size_t g = 0; g < groups; ++g) {
        const size_t at = (block * (groups / w.per) + g / w.per) * 16 + column;
        const float sum = p.sum_m[m * p.group_stride + g];
        float parts[2] = {0.0f, 0.0f};
        for (size_t i = g * w.group; i < (g + 1) * w.group; ++i) {
            float& part = parts[i / 4 % 2];
            const size_t k = i / 4 * 4 + order[i % 4];
            part = fmaf(widen(row[i]), widen(levels.bf16[code<bits>(codes, column, k)]), part);
        }
        float t = parts[0] + parts[1];
        if (w.zero) t = fmaf(sum, (float)(middle_of(w) - w.zero[at]), t);
        y = fmaf(t, of_group(w, w.scale, at), y);
        if (w.minimum) y = fmaf(sum, of_group(w, w.minimum, at), y);
    }
    return y + p.bias[n];
}

void linear_w4a16_scalar(const LinearW4A16* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end) {
    const size_t end = block_end * 16 < p->n ? block_end * 16 : p->n;
    const Levels levels(*p);
    for_bits(p->weight.bits, [&](auto bits) {
        for (size_t m = row_begin; m < row_end; ++m) {
            for (size_t n = block_begin * 16; n < end; ++n) {
                write_output(*p, product<bits.value>(*p, levels, m, n), m * p->out_stride + n);
            }
        }
    });
}

void prepare_w4a16_scalar(const PrepareW4A16* p, size_t row_begin, size_t row_end) {
    prepare_any_rows(*p, row_begin, row_end);
}
