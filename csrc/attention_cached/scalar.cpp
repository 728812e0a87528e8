// attention_cached, the definition in C++. See contract.h.
#include "common.h"

namespace {

// A score of line q with token t of a block, in units of log2.
struct Query {
    int8_t codes[kMaxHeadSize];
    const uint16_t* values;
    float factor, cap;
};

float score(const AttendCached& p, const CachedHead& h, const Query& q, size_t t) {
    const size_t size = p.cache.head_size;
    float s;
    if (p.cache.kind == CacheKind::kInt8) {
        int32_t dot = 0;
        for (size_t i = 0; i < size; ++i) dot += q.codes[i] * ((uint8_t)h.keys[place_of_key<4>(t, i, size)] - 128);
        s = (float)dot * (h.key_scales[t] * q.factor);
    } else {
        float dot = 0.0f;
        for (size_t i = 0; i < size; ++i) {
            dot += widen(q.values[i]) * widen(((const uint16_t*)h.keys)[place_of_key<2>(t, i, size)]);
        }
        s = dot * q.factor;
    }
    return q.cap > 0.0f ? q.cap * tanhf(s / q.cap) : s;
}

// Adds the value of each token t times weights[t].
void mix(const AttendCached& p, const CachedHead& h, const float* weights, float factor, float* out) {
    const size_t size = p.cache.head_size;
    if (p.cache.kind == CacheKind::kBf16) {
        for (size_t d = 0; d < size; ++d) {
            float sum = 0.0f;
            for (size_t t = 0; t < kCacheBlock; ++t) {
                sum += weights[t] * widen(((const uint16_t*)h.values)[place_of_value<2>(t, d, size)]);
            }
            out[d] = out[d] * factor + sum;
        }
        return;
    }
    float largest = 0.0f, scaled[kCacheBlock];
    for (size_t t = 0; t < kCacheBlock; ++t) {
        scaled[t] = weights[t] == 0.0f ? 0.0f : weights[t] * h.value_scales[t];
        largest = scaled[t] > largest ? scaled[t] : largest;
    }
    const bool some = largest >= 0x1p-119f;
    const float inverse = some ? 255.0f / largest : 0.0f, step = some ? largest * (1.0f / 255.0f) : 0.0f;
    int32_t codes[kCacheBlock];
    for (size_t t = 0; t < kCacheBlock; ++t) {
        codes[t] = scaled[t] == scaled[t] ? (int32_t)rintf(scaled[t] * inverse) : 0;
    }
    for (size_t d = 0; d < size; ++d) {
        int32_t sum = 0;
        for (size_t t = 0; t < kCacheBlock; ++t) sum += codes[t] * (int8_t)h.values[place_of_value<4>(t, d, size)];
        out[d] = out[d] * factor + (float)sum * step;
    }
}

void attend_line(const AttendCached& p, size_t head, Line line, size_t part, float* partial) {
    const size_t size = p.cache.head_size;
    float *sums = partial + size, *largest = sums + kLargest;
    for (size_t i = 0; i < size + kSums; ++i) partial[i] = 0.0f;
    *largest = -INFINITY;
    Query q{.codes = {}, .values = query_of(p, line), .factor = p.scale * kLog2E, .cap = p.softcap * kLog2E};
    if (p.cache.kind == CacheKind::kInt8) q.factor *= row_codes(q.values, size, q.codes);
    const CachedRange seen = keys_seen(&p, line.row, line.row + 1);
    const size_t end = least(seen.end, (part + 1) * kPart);
    for (size_t begin = part * kPart; begin < end; begin += kCacheBlock) {
        if (seen.begin >= begin + kCacheBlock) continue;
        const CachedHead h = cached_head(p.cache, p.table[begin / kCacheBlock], head);
        const size_t first = seen.begin > begin ? seen.begin - begin : 0, last = least(kCacheBlock, end - begin);
        float weights[kCacheBlock] = {0}, scores[kCacheBlock], top = *largest;
        for (size_t t = first; t < last; ++t) {
            scores[t] = score(p, h, q, t);
            top = scores[t] > top ? scores[t] : top;
        }
        const float factor = top > *largest ? exp2f(*largest - top) : 1.0f;
        for (size_t i = 0; i < kSums; ++i) sums[i] *= factor;
        for (size_t t = first; t < last; ++t) {
            weights[t] = exp2f(scores[t] - top);
            sums[t % kSums] += weights[t];
        }
        mix(p, h, weights, factor, partial);
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
