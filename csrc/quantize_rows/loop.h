// The loop over rows, of variants in vectors. It comes after what it is made of: Row<T, transformed>, range_of,
// write_codes. Everything is internal to the file that includes it.
#pragma once

namespace {

template <class T, bool transformed>
void quantize_rows(const QuantizeRows& p, size_t row_begin, size_t row_end) {
    for (size_t m = row_begin; m < row_end; ++m) {
        const Row<T, transformed> row = {(const T*)p.x + m * p.x_stride, p.shift, p.multiplier};
        uint8_t* codes = p.codes + m * p.code_stride;
        const bool is_static = p.mode == QuantizeMode::kStatic;
        const Grid g = is_static ? static_grid(p) : grid_of(p, range_of(row, p.k));
        if (!g.finite || !(is_static ? write_codes<true>(row, p.k, g, p.code_min, codes)
                                     : write_codes<false>(row, p.k, g, p.code_min, codes))) {
            poison_row(p, m);
            continue;
        }
        p.scale[m] = g.scale;
        p.zero_point[m] = g.zero;
    }
}

inline void quantize_any_rows(const QuantizeRows& p, size_t row_begin, size_t row_end) {
    static constexpr decltype(&quantize_rows<float, false>) table[2][2] = {
        {quantize_rows<float, false>, quantize_rows<float, true>},
        {quantize_rows<uint16_t, false>, quantize_rows<uint16_t, true>}};
    table[p.bf16][p.multiplier != nullptr](p, row_begin, row_end);
}

}  // namespace
