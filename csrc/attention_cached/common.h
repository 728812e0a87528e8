// What the variants of attention_cached share: append and merge. Loops over single values, which the compiler
// vectorizes with each variant's flags. Everything is internal to the file that includes it.
#pragma once
#include "int4.h"

namespace {

inline void append_int8(const CachedHead& h, size_t t, const uint16_t* k, const uint16_t* v, size_t size) {
    float keys[kMaxHeadSize], values[kMaxHeadSize];
    rotated(k, size, keys);
    rotated(v, size, values);
    append_bytes(h, t, keys, values, size);
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
    for (size_t token = token_begin; token < token_end; ++token) {
        const size_t position = p->past + token, t = position % kCacheBlock;
        for (size_t head = head_begin; head < head_end; ++head) {
            const CachedHead h = cached_head(*p, position / kCacheBlock, head);
            if (t == 0) memset(h.keys, 0, cache_head_bytes(kind, size));
            const uint16_t *k = p->k + token * p->stride + head * size, *v = p->v + token * p->stride + head * size;
            if (kind == CacheKind::kInt8) append_int8(h, t, k, v, size);
            if (kind == CacheKind::kBf16) append_bf16(h, t, k, v, size);
            if (kind != CacheKind::kInt4) continue;
            const CachedHead hot = hot_head(*p, position / kCacheBlock, head);
            if (t == 0) {
                memset(hot.keys, 0, hot_bytes(size));
                memset(hot.values, 0, hot_bytes(size));
            }
            append_int4(h, hot, t, k, v, size);
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
    if (p.cache.kind != CacheKind::kBf16) rotate_head(mixed, size);
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
