// What the vector variants share once a row's range is known. Everything is internal to the file that includes it.
#pragma once
#include <immintrin.h>

#include "contract.h"
#include "vectors/bf16.h"

namespace {

struct Range {
    float lo, hi;
    bool finite;
};

// Of bf16 by the least and the largest of their words, in which the lower bits of negative ones are flipped, so that
// their order as signed integers is that of the values. NaNs lie beyond the infinities, on either side.
inline Range bf16_range(int16_t lo, int16_t hi) {
    const auto value = [](int16_t word) { return widen((uint16_t)(word < 0 ? word ^ 0x7fff : word)); };
    return {value(lo), value(hi), lo >= -0x7f80 && hi < 0x7f80};
}

// The least of 8 signed words.
inline int16_t least_word(__m128i words) {
    const __m128i top = _mm_set1_epi16((int16_t)0x8000);  // between signed order and that of vphminposuw
    return (int16_t)_mm_extract_epi16(_mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(words, top)), top), 0);
}

// inv = 1 / scale; finite as in Range, and false too where hi - lo overflows.
struct Grid {
    float scale, inv;
    int32_t zero;
    bool finite;
};

inline Grid static_grid(const QuantizeRows& p) {
    return {p.static_scale, 1.0f / p.static_scale, p.static_zero_point, true};
}

inline Grid grid_of(const QuantizeRows& p, const Range& r) {
    const float absmax = r.hi > -r.lo ? r.hi : -r.lo;
    const float width = p.mode == QuantizeMode::kSymmetric ? absmax : r.hi - r.lo;
    float scale = width == 0.0f ? 1.0f : width / (p.mode == QuantizeMode::kSymmetric ? 127.0f : 255.0f);
    if (scale < __FLT_MIN__) scale = __FLT_MIN__;
    const float inv = 1.0f / scale;
    const bool finite = r.finite && width <= __FLT_MAX__;
    if (p.mode == QuantizeMode::kSymmetric) return {scale, inv, 0, finite};
    const float z = __builtin_rintf(-128.0f - r.lo * inv);
    return {scale, inv, z < -128.0f ? -128 : z > 127.0f ? 127 : (int32_t)z, finite};
}

// A row that is not finite: scale NaN, every code 0.
inline void poison_row(const QuantizeRows& p, size_t m) {
    for (size_t i = 0; i < (p.k + 63) / 64 * 64; ++i) p.codes[m * p.code_stride + i] = 128;
    p.scale[m] = __builtin_nanf("");
    p.zero_point[m] = 0;
}

}  // namespace
