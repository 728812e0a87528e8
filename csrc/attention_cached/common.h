// What the variants of attention_cached share: where things lie, how rows become codes, append and merge. Loops over
// single values, which the compiler vectorizes with each variant's flags. Everything is internal to the file that
// includes it.
#pragma once
#include <float.h>
#include <math.h>
#include <string.h>

#include "attention/common.h"
#include "contract.h"
#include "vectors/bf16.h"

namespace {

// A head's part of a block.
struct CachedHead {
    char *keys, *values;
    char *key_scales, *value_scales;  // f32 of int8, bf16 of int4
    char* zeros;                      // of int4
};

inline CachedHead cached_head(const CacheLayer& cache, int32_t block, size_t head) {
    char* at = cache.blocks + (size_t)block * cache.block_stride + head * cache.head_stride;
    const size_t size = cache.head_size;
    if (cache.kind == CacheKind::kInt4) {
        const size_t bytes = kCacheBlock * size / 2;
        char* scales = at + 2 * bytes;
        char* of_values = scales + size / key_group(size) * kCacheBlock * sizeof(uint16_t);
        return {at, at + bytes, scales, of_values,
                of_values + size / value_group(size) * kCacheBlock * sizeof(uint16_t)};
    }
    const size_t bytes = kCacheBlock * size * (cache.kind == CacheKind::kInt8 ? 1 : 2);
    char* scales = at + 2 * bytes;
    return {at, at + bytes, scales, scales + kCacheBlock * sizeof(float), nullptr};
}

// Where value i of token t of a block lies, in values, and where PerCell of them are a cell.
template <size_t PerCell>
inline size_t place_of_key(size_t t, size_t i, size_t size) {
    return (t / 16 * (size / PerCell) + i / PerCell) * 16 * PerCell + t % 16 * PerCell + i % PerCell;
}
template <size_t PerCell>
inline size_t place_of_value(size_t t, size_t i, size_t size) {
    return (t / PerCell * size + i) * PerCell + t % PerCell;
}

inline void widen_row(const uint16_t* x, size_t size, float* out) {
    for (size_t i = 0; i < size; ++i) out[i] = widen(x[i]);
}

// Codes of a row, and their scale; NaN and zeros if a value is not finite.
inline float row_codes(const float* x, size_t size, int8_t* codes) {
    uint32_t bits = 0;
    for (size_t i = 0; i < size; ++i) {
        const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        bits = magnitude > bits ? magnitude : bits;
    }
    const float largest = float_of(bits);
    const bool some = largest >= FLT_MIN && largest <= FLT_MAX;
    const float inverse = some ? 127.0f / largest : 0.0f;
    if (!some) {
        memset(codes, 0, size);
        return largest <= FLT_MAX ? 0.0f : NAN;
    }
    for (size_t i = 0; i < size; ++i) codes[i] = (int8_t)(int32_t)rintf(x[i] * inverse);
    return largest * (1.0f / 127.0f);
}

inline float row_codes(const uint16_t* x, size_t size, int8_t* codes) {
    float wide[kMaxHeadSize];
    widen_row(x, size, wide);
    return row_codes(wide, size, codes);
}

// Multiplies each stretch of a head's values by a Hadamard matrix of ones and minus ones, in place.
inline void rotate_head(float* x, size_t size) {
    const size_t count = rotated_together(size), half = count / 2;
    for (const float* end = x + size; x < end; x += count) {
        for (size_t step = 1; step < count; step *= 2) {
            float from[kMaxHeadSize];
            memcpy(from, x, count * sizeof *x);
            for (size_t i = 0; i < half; ++i) {
                x[2 * i] = from[i] + from[i + half];
                x[2 * i + 1] = from[i] - from[i + half];
            }
        }
    }
}

// Codes of int8 of a rotated query, and their scale. start: minus eight times the sum of the codes of each group.
inline float rotated_codes(const uint16_t* q, size_t size, int8_t* codes, int32_t* start) {
    const size_t group = key_group(size);
    float wide[kMaxHeadSize];
    widen_row(q, size, wide);
    rotate_head(wide, size);
    const float scale = row_codes(wide, size, codes);
    for (size_t i = 0; i < size; i += group) {
        int32_t sum = 0;
        for (size_t j = i; j < i + group; ++j) sum += codes[j];
        *start++ = -8 * sum;
    }
    return scale;
}

inline bool row_is_finite(const uint16_t* x, size_t size) {
    bool finite = true;
    for (size_t i = 0; i < size; ++i) finite &= is_finite(x[i]);
    return finite;
}

inline void append_int8(const CachedHead& h, size_t t, const uint16_t* k, const uint16_t* v, size_t size) {
    int8_t keys[kMaxHeadSize], values[kMaxHeadSize];
    const float key_scale = row_codes(k, size, keys), value_scale = row_codes(v, size, values);
    const bool finite = value_scale == value_scale;
    ((float*)h.key_scales)[t] = finite ? key_scale : NAN;
    ((float*)h.value_scales)[t] = finite && key_scale == key_scale ? value_scale : 0.0f;
    for (size_t i = 0; i < size; i += 4) {
        uint32_t cell;
        memcpy(&cell, keys + i, 4);
        cell ^= 0x80808080u;
        memcpy(h.keys + place_of_key<4>(t, i, size), &cell, 4);
    }
    for (size_t i = 0; i < size; ++i) h.values[place_of_value<4>(t, i, size)] = (char)values[i];
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

// As int4 rotates a key or a value.
inline void rotated(const uint16_t* x, size_t size, float* out) {
    const float inverse = 1.0f / (float)rotated_together(size);
    for (size_t i = 0; i < size; ++i) out[i] = widen(x[i]) * inverse;
    rotate_head(out, size);
}

inline void append_int4(const CachedHead& h, size_t t, const uint16_t* k, const uint16_t* v, size_t size) {
    float keys[kMaxHeadSize] = {0}, values[kMaxHeadSize] = {0};
    const bool finite = row_is_finite(k, size) && row_is_finite(v, size);
    if (finite) {
        rotated(k, size, keys);
        rotated(v, size, values);
    }
    append_int4_keys(h, t, keys, size);
    append_int4_values(h, t, values, size);
    if (finite) return;
    for (size_t i = 0; i < size / key_group(size); ++i) ((uint16_t*)h.key_scales)[i * kCacheBlock + t] = 0x7fc0;
}

inline void append_bf16(const CachedHead& h, size_t t, const uint16_t* k, const uint16_t* v, size_t size) {
    uint16_t *keys = (uint16_t*)h.keys, *values = (uint16_t*)h.values;
    const bool finite = row_is_finite(k, size) && row_is_finite(v, size);
    for (size_t i = 0; i < size; ++i) {
        keys[place_of_key<2>(t, i, size)] = finite ? k[i] : 0x7fc0;
        values[place_of_value<2>(t, i, size)] = finite ? v[i] : 0;
    }
}

void append(const AppendCached* p, size_t token_begin, size_t token_end, size_t head_begin, size_t head_end) {
    const size_t size = p->cache.head_size;
    const CacheKind kind = p->cache.kind;
    const auto by_kind = kind == CacheKind::kInt8 ? append_int8 : kind == CacheKind::kInt4 ? append_int4 : append_bf16;
    for (size_t token = token_begin; token < token_end; ++token) {
        const size_t position = p->past + token, t = position % kCacheBlock;
        for (size_t head = head_begin; head < head_end; ++head) {
            const CachedHead h = cached_head(p->cache, p->table[position / kCacheBlock], head);
            if (t == 0) memset(h.keys, 0, cache_head_bytes(kind, size));
            const uint16_t *k = p->k + token * p->stride + head * size, *v = p->v + token * p->stride + head * size;
            by_kind(h, t, k, v, size);
        }
    }
}

// The query head of a line, and its row.
struct Line {
    size_t row, head;
};

inline Line line_of(const AttendCached& p, size_t head, size_t line) {
    return {line / p.heads_per_kv, head * p.heads_per_kv + line % p.heads_per_kv};
}

inline const uint16_t* query_of(const AttendCached& p, Line line) {
    return p.q + line.row * p.q_stride + line.head * p.cache.head_size;
}

// What lies behind the D values of a partial result.
enum : size_t { kSums = 16, kLargest = 16 };

inline float sum_of_lanes(const float* x) {
    float lanes[kSums];
    memcpy(lanes, x, sizeof lanes);
    for (size_t half = kSums / 2; half; half /= 2) {
        for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

// 2^(score - largest), 1 also where both are -inf.
inline float power_below(float score, float largest) { return score == largest ? 1.0f : exp2f(score - largest); }

void merge_line(const AttendCached& p, Line line, size_t parts, const float* partials, size_t part_stride) {
    const size_t size = p.cache.head_size;
    const float sink = p.sinks ? p.sinks[line.head] * kLog2E : -INFINITY;
    float largest = sink, mixed[kMaxHeadSize] = {0};
    for (size_t i = 0; i < parts; ++i) {
        const float score = partials[i * part_stride + size + kLargest];
        largest = score > largest ? score : largest;
    }
    float sum = p.sinks ? power_below(sink, largest) : 0.0f;
    for (size_t i = 0; i < parts; ++i, partials += part_stride) {
        const float factor = power_below(partials[size + kLargest], largest);
        sum += factor * sum_of_lanes(partials + size);
        for (size_t d = 0; d < size; ++d) mixed[d] += factor * partials[d];
    }
    if (p.cache.kind == CacheKind::kInt4) rotate_head(mixed, size);
    uint16_t* out = p.out + line.row * p.out_stride + line.head * size;
    const float inverse = 1.0f / sum;
    for (size_t d = 0; d < size; ++d) out[d] = to_bf16(mixed[d] * inverse);
}

void merge(const AttendCached* p, size_t head, size_t line_begin, size_t line_end, size_t parts, const float* partials,
           size_t part_stride) {
    for (size_t line = line_begin; line < line_end; ++line, partials += partial_floats(p->cache.head_size)) {
        merge_line(*p, line_of(*p, head, line), parts, partials, part_stride);
    }
}

}  // namespace
