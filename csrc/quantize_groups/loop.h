// The loop over rows and groups, of variants in vectors. It comes after what it is made of, for values that
// load(x, shift, multiplier, k) gives: largest_bits(values, begin, end), the bits of the largest |x|, and
// write_codes(values, begin, end, inv, codes), which returns the sum of the codes. Everything is internal to the file
// that includes it.
#pragma once
#include <string.h>

#include "contract.h"
#include "vectors/bf16.h"

namespace {

template <class T, bool transformed>
void quantize_groups(const QuantizeGroups& p, size_t row_begin, size_t row_end) {
    for (size_t m = row_begin; m < row_end; ++m) {
        const Values<T, transformed> values = {(const T*)p.x + m * p.x_stride, p.shift, p.multiplier};
        int8_t* codes = p.codes + m * p.code_stride;
        uint32_t largest = p.by_row ? largest_bits(values, 0, p.k) : 0;
        for (size_t g = 0, begin = 0; begin < p.k; ++g, begin += p.group) {
            const size_t end = begin + p.group, at = m * p.group_stride + g;
            // As integers magnitudes have the same order, and NaNs lie beyond the infinities
            if (!p.by_row) largest = largest_bits(values, begin, end);
            if (largest >= bits_of(__builtin_inff())) {
                memset(codes + begin, 0, p.group);
                p.scale[at] = __builtin_nanf("");
                p.sum[at] = 0;
                continue;
            }
            const float scale = largest == 0 ? 1.0f : float_of(largest) / 127.0f;
            p.scale[at] = scale < __FLT_MIN__ ? __FLT_MIN__ : scale;
            p.sum[at] = write_codes(values, begin, end, 1.0f / p.scale[at], codes);
        }
        memset(codes + p.k, 0, (p.k + 63) / 64 * 64 - p.k);
    }
}

inline void quantize_any_groups(const QuantizeGroups& p, size_t row_begin, size_t row_end) {
    static constexpr decltype(&quantize_groups<float, false>) table[2][2] = {
        {quantize_groups<float, false>, quantize_groups<float, true>},
        {quantize_groups<uint16_t, false>, quantize_groups<uint16_t, true>}};
    table[p.bf16][p.multiplier != nullptr](p, row_begin, row_end);
}

}  // namespace
