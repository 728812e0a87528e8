// attention_cached, the definition in C++. See contract.h.
#include "common.h"

namespace {

// A line's query.
struct Query {
    int8_t codes[kMaxHeadSize];
    int32_t start[kMostGroups];
    const uint16_t* values;
    float factor, cap;
};

// kind: how the block is held.
float scaled_product(CacheKind kind, const CachedHead& h, const Query& q, size_t t, size_t size) {
    float sum = 0.0f;
    if (kind == CacheKind::kBf16) {
        for (size_t i = 0; i < size; ++i) {
            sum += widen(q.values[i]) * widen(((const uint16_t*)h.keys)[place_of_key<2>(t, i, size)]);
        }
        return sum * q.factor;
    }
    if (kind == CacheKind::kInt8) {
        int32_t dot = 0;
        for (size_t i = 0; i < size; ++i) dot += q.codes[i] * ((uint8_t)h.keys[place_of_key<4>(t, i, size)] - 128);
        return (float)dot * (((const float*)h.key_scales)[t] * q.factor);
    }
    const size_t group = key_group(size);
    for (size_t begin = 0; begin < size; begin += group) {
        int32_t dot = q.start[begin / group];
        for (size_t i = begin; i < begin + group; ++i) {
            const uint8_t two = h.keys[place_of_key<4>(t, i / 8 * 4 + i % 4, size / 2)];
            dot += q.codes[i] * (two >> i % 8 / 4 * 4 & 15);
        }
        sum += (float)dot * widen(((const uint16_t*)h.key_scales)[begin / group * kCacheBlock + t]);
    }
    return sum * q.factor;
}

// A score of a query with token t of a block, in units of log2.
float score(CacheKind kind, const CachedHead& h, const Query& q, size_t t, size_t size) {
    const float s = scaled_product(kind, h, q, t, size);
    return q.cap > 0.0f ? q.cap * tanhf(s / q.cap) : s;
}

void mix_bf16(const CachedHead& h, const float* weights, float factor, size_t size, float* out) {
    for (size_t d = 0; d < size; ++d) {
        float sum = 0.0f;
        for (size_t t = 0; t < kCacheBlock; ++t) {
            sum += weights[t] * widen(((const uint16_t*)h.values)[place_of_value<2>(t, d, size)]);
        }
        out[d] = out[d] * factor + sum;
    }
}

// Values [begin, end), which share a scale. scale(t): of token t; code(t, d): of its value d.
template <class Scale, class Code>
void mix_codes(const float* weights, float factor, size_t begin, size_t end, float* out, Scale scale, Code code) {
    float largest = 0.0f, scaled[kCacheBlock];
    for (size_t t = 0; t < kCacheBlock; ++t) {
        scaled[t] = weights[t] == 0.0f ? 0.0f : weights[t] * scale(t);
        largest = scaled[t] > largest ? scaled[t] : largest;
    }
    const bool some = largest >= 0x1p-119f;
    const float inverse = some ? 255.0f / largest : 0.0f, step = some ? largest * (1.0f / 255.0f) : 0.0f;
    int32_t bytes[kCacheBlock];
    for (size_t t = 0; t < kCacheBlock; ++t) {
        bytes[t] = scaled[t] == scaled[t] ? (int32_t)rintf(scaled[t] * inverse) : 0;
    }
    for (size_t d = begin; d < end; ++d) {
        int32_t sum = 0;
        for (size_t t = 0; t < kCacheBlock; ++t) sum += bytes[t] * code(t, d);
        out[d] = out[d] * factor + (float)sum * step;
    }
}

// Adds the value of each token t times weights[t].
void mix(CacheKind kind, const CachedHead& h, const float* weights, float factor, size_t size, float* out) {
    const size_t group = value_group(size);
    if (kind == CacheKind::kBf16) return mix_bf16(h, weights, factor, size, out);
    if (kind == CacheKind::kInt8) {
        mix_codes(
            weights, factor, 0, size, out, [&](size_t t) { return ((const float*)h.value_scales)[t]; },
            [&](size_t t, size_t d) { return (int8_t)h.values[place_of_value<4>(t, d, size)]; });
        return;
    }
    for (size_t begin = 0; begin < size; begin += group) {
        const size_t first = begin / group * kCacheBlock;
        mix_codes(
            weights, factor, begin, begin + group, out,
            [&](size_t t) { return widen(((const uint16_t*)h.value_scales)[first + t]); },
            [&](size_t t, size_t d) {
                const uint8_t two = h.values[place_of_value<4>(t / 8 * 4 + t % 4, d, size)];
                return (two >> t % 8 / 4 * 4 & 15) - (uint8_t)h.zeros[first + t];
            });
    }
}

void attend_line(const AttendCached& p, size_t head, Line line, size_t part, float* partial) {
    const size_t size = p.cache.head_size;
    float *sums = partial + size, *largest = sums + kLargest;
    for (size_t i = 0; i < size + kSums; ++i) partial[i] = 0.0f;
    *largest = -INFINITY;
    Query q{
        .codes = {}, .start = {}, .values = query_of(p, line), .factor = p.scale * kLog2E, .cap = p.softcap * kLog2E};
    if (p.cache.kind == CacheKind::kInt8) {
        float wide[kMaxHeadSize];
        rotated_query(q.values, size, wide);
        q.factor *= row_codes(wide, size, q.codes);
    }
    if (p.cache.kind == CacheKind::kInt4) q.factor *= rotated_codes(q.values, size, q.codes, q.start);
    const CachedRange seen = keys_seen(&p, line.row, line.row + 1);
    const size_t end = least(seen.end, (part + 1) * kPart), own = (p.past + line.row) / kCacheBlock;
    for (size_t begin = part * kPart; begin < end; begin += kCacheBlock) {
        if (seen.begin >= begin + kCacheBlock) continue;
        const size_t block = begin / kCacheBlock;
        const bool hot = p.cache.kind == CacheKind::kInt4 && is_hot(own, block);
        const CacheKind kind = hot ? CacheKind::kInt8 : p.cache.kind;
        const CachedHead h = hot ? hot_head(p, block, head) : cached_head(p, block, head);
        const size_t first = seen.begin > begin ? seen.begin - begin : 0, last = least(kCacheBlock, end - begin);
        float weights[kCacheBlock] = {0}, scores[kCacheBlock], top = *largest;
        for (size_t t = first; t < last; ++t) {
            scores[t] = score(kind, h, q, t, size);
            top = scores[t] > top ? scores[t] : top;
        }
        const float factor = top > *largest ? exp2f(*largest - top) : 1.0f;
        for (size_t i = 0; i < kSums; ++i) sums[i] *= factor;
        for (size_t t = first; t < last; ++t) {
            weights[t] = exp2f(scores[t] - top);
            sums[t % kSums] += weights[t];
        }
        mix(kind, h, weights, factor, size, partial);
        *largest = top;
    }
}

void attend(const AttendCached* p, size_t head, size_t line_begin, size_t line_end, size_t part, float* partials) {
    for (size_t line = line_begin; line < line_end; ++line, partials += partial_floats(p->cache.head_size)) {
        attend_line(*p, head, line_of(*p, head, line), part, partials);
    }
}

}  // namespace

const CachedKernels kCachedScalar = {append, attend, merge};
