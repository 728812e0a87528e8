// How a token goes into a cache of 4 bits. Everything is internal to the file that includes it.
#pragma once
#include "rotate.h"

namespace {

// Codes of int8 of a rotated query, and their scale. start: minus eight times the sum of the codes of each group.
inline float rotated_codes(const uint16_t* q, size_t size, int8_t* codes, int32_t* start) {
    const size_t group = key_group(size);
    float wide[kMaxHeadSize];
    rotated_query(q, size, wide);
    const float scale = row_codes(wide, size, codes);
    for (size_t i = 0; i < size; i += group) {
        int32_t sum = 0;
        for (size_t j = i; j < i + group; ++j) sum += codes[j];
        *start++ = -8 * sum;
    }
    return scale;
}

// The least and the largest of some values and zero.
struct Span {
    float least, largest;
};

inline Span span_of(const float* x, size_t count) {
    Span span = {0.0f, 0.0f};
    for (size_t i = 0; i < count; ++i) {
        span.least = x[i] < span.least ? x[i] : span.least;
        span.largest = x[i] > span.largest ? x[i] : span.largest;
    }
    return span;
}

// Values become codes 0 to 15 around a zero.
inline void nibbles(const float* x, size_t count, float scale, float zero, uint8_t* codes) {
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (size_t i = 0; i < count; ++i) {
        const float code = rintf(x[i] * inverse) + zero, above = code > 0.0f ? code : 0.0f;
        codes[i] = (uint8_t)(int32_t)(above < 15.0f ? above : 15.0f);
    }
}

// A scale as the cache holds it: 0 where its inverse might not be finite.
inline uint16_t held_scale(float x) { return fabsf(x) >= 0x1p-120f ? to_bf16(x) : 0; }

inline void append_int4_keys(const CachedHead& h, size_t t, const float* values, size_t size) {
    const size_t group = key_group(size);
    uint8_t codes[kMaxHeadSize];
    for (size_t i = 0; i < size; i += group) {
        const Span span = span_of(values + i, group);
        const uint16_t scale = held_scale((span.largest > -span.least ? -span.largest : -span.least) * 0.125f);
        ((uint16_t*)h.key_scales)[i / group * kCacheBlock + t] = scale;
        nibbles(values + i, group, widen(scale), 8.0f, codes + i);
    }
    for (size_t i = 0; i < size; i += 8) {
        uint32_t low, high;
        memcpy(&low, codes + i, 4);
        memcpy(&high, codes + i + 4, 4);
        low |= high << 4;
        memcpy(h.keys + place_of_key<4>(t, i / 2, size / 2), &low, 4);
    }
}

inline void append_int4_values(const CachedHead& h, size_t t, const float* values, size_t size) {
    const size_t group = value_group(size);
    uint8_t codes[kMaxHeadSize];
    for (size_t i = 0; i < size; i += group) {
        const Span span = span_of(values + i, group);
        const uint16_t scale = held_scale((span.largest - span.least) * (1.0f / 15.0f));
        const float zero = scale ? rintf(-span.least / widen(scale)) : 0.0f;
        ((uint16_t*)h.value_scales)[i / group * kCacheBlock + t] = scale;
        h.zeros[i / group * kCacheBlock + t] = (char)(int32_t)zero;
        nibbles(values + i, group, widen(scale), zero, codes + i);
    }
    const unsigned shift = t % 8 / 4 * 4, kept = 0xf0u >> shift;
    for (size_t i = 0; i < size; ++i) {
        char& at = h.values[place_of_value<4>(t / 8 * 4 + t % 4, i, size)];
        at = (char)(((uint8_t)at & kept) | (unsigned)codes[i] << shift);
    }
}

// In 4 bits, and in 8.
inline void append_int4(const CachedHead& h, const CachedHead& hot, size_t t, const uint16_t* k, const uint16_t* v,
                        size_t size) {
    float keys[kMaxHeadSize] = {0}, values[kMaxHeadSize] = {0};
    const bool finite = row_is_finite(k, size) && row_is_finite(v, size);
    if (finite) {
        rotated(k, size, keys);
        rotated(v, size, values);
    }
    append_int4_keys(h, t, keys, size);
    append_int4_values(h, t, values, size);
    append_bytes(hot, t, keys, values, size);
    if (finite) return;
    ((float*)hot.key_scales)[t] = NAN;
    for (size_t i = 0; i < size / key_group(size); ++i) ((uint16_t*)h.key_scales)[i * kCacheBlock + t] = 0x7fc0;
}

}  // namespace
