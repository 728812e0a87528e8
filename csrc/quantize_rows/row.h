// What the vector variants share once a row's range is known. Everything is internal to the file that includes it.
#pragma once
#include "contract.h"

namespace {

struct Range {
    float lo, hi;
    bool finite;
};

struct Grid {
    float scale, inv;
    int32_t zero;
};

inline Grid grid_of(const QuantizeRows& p, Range& r) {
    if (p.mode == kStatic) return {p.static_scale, 1.0f / p.static_scale, p.static_zero_point};
    const float absmax = r.hi > -r.lo ? r.hi : -r.lo;
    const float width = p.mode == kSymmetric ? absmax : r.hi - r.lo;
    r.finite = r.finite && width <= __FLT_MAX__;
    float scale = width == 0.0f ? 1.0f : width / (p.mode == kSymmetric ? 127.0f : 255.0f);
    if (scale < __FLT_MIN__) scale = __FLT_MIN__;
    const float inv = 1.0f / scale;
    if (p.mode == kSymmetric) return {scale, inv, 0};
    const float z = __builtin_rintf(-128.0f - r.lo * inv);
    return {scale, inv, z < -128.0f ? -128 : z > 127.0f ? 127 : (int32_t)z};
}

inline void fill(uint8_t* codes, size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) codes[i] = 128;
}

}  // namespace
