// attention_int8, the definition in C++. See contract.h.
#include <float.h>
#include <math.h>

#include "attention/common.h"
#include "contract.h"
#include "vectors/bf16.h"

namespace {

struct Scale {
    float scale, inverse;
};

Scale scale_of(float largest) {
    if (!(largest >= FLT_MIN)) return {0.0f, 0.0f};
    return {largest * (1.0f / 127.0f), 127.0f / largest};
}

// Codes of a row less a mean, and their scale; NaN if one is not finite.
float codes_of(const uint16_t* x, const float* mean, size_t size, int8_t* codes) {
    float largest = 0.0f;
    for (size_t i = 0; i < size; ++i) {
        const float magnitude = fabsf(widen(x[i]) - (mean ? mean[i] : 0.0f));
        if (!(magnitude <= FLT_MAX)) return NAN;
        largest = magnitude > largest ? magnitude : largest;
    }
    const Scale s = scale_of(largest);
    for (size_t i = 0; i < size; ++i) {
        codes[i] = (int8_t)lrintf((widen(x[i]) - (mean ? mean[i] : 0.0f)) * s.inverse);
    }
    return s.scale;
}

// A head as it is multiplied.
struct Head {
    int8_t *keys, *values;  // [tokens, head_size]
    float *key_scale, *value_scale, *scores, *mixed;
};

bool prepare(const Attention& p, size_t head, const Head& h) {
    const uint16_t *k = p.k + head * p.head_size, *v = p.v + head * p.head_size;
    float mean[kMaxHeadSize];
    for (size_t i = 0; i < p.head_size; ++i) {
        float sum = 0.0f, largest = 0.0f;
        for (size_t j = 0; j < p.tokens; ++j) {
            sum += widen(k[j * p.stride + i]);
            const float magnitude = fabsf(widen(v[j * p.stride + i]));
            if (!(magnitude <= FLT_MAX)) return false;
            largest = magnitude > largest ? magnitude : largest;
        }
        mean[i] = sum / p.tokens;
        const Scale s = scale_of(largest);
        h.value_scale[i] = s.scale;
        for (size_t j = 0; j < p.tokens; ++j) {
            h.values[j * p.head_size + i] = (int8_t)lrintf(widen(v[j * p.stride + i]) * s.inverse);
        }
    }
    for (size_t j = 0; j < p.tokens; ++j) {
        h.key_scale[j] = codes_of(k + j * p.stride, mean, p.head_size, h.keys + j * p.head_size);
        if (h.key_scale[j] != h.key_scale[j]) return false;
    }
    return true;
}

float largest_of(const float* x, size_t count) {
    float largest = -FLT_MAX;
    for (size_t i = 0; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

void attend(const Attention& p, size_t head, size_t query, const Head& h) {
    int8_t codes[kMaxHeadSize];
    const size_t column = head * p.head_size;
    const float scale = codes_of(p.q + query * p.stride + column, nullptr, p.head_size, codes) * p.scale;
    const Range keys = seen_by(p, query, query + 1);
    const float* bias = p.bias ? bias_of(p, head, query) : nullptr;
    for (size_t j = keys.begin; j < keys.end; ++j) {
        int32_t dot = 0;
        for (size_t i = 0; i < p.head_size; ++i) dot += codes[i] * h.keys[j * p.head_size + i];
        h.scores[j] = (float)dot * h.key_scale[j] * scale + (bias ? bias[j] : 0.0f);
    }
    const float largest = largest_of(h.scores + keys.begin, keys.end - keys.begin);
    float sum = 0.0f;
    for (size_t i = 0; i < p.head_size; ++i) h.mixed[i] = 0.0f;
    for (size_t begin = keys.begin; begin < keys.end;) {
        const size_t end = least(keys.end, begin / kKeyBlock * kKeyBlock + kKeyBlock);
        const float top = largest_of(h.scores + begin, end - begin), factor = expf(top - largest);
        int32_t total = 0, products[kMaxHeadSize] = {0};
        for (size_t j = begin; j < end; ++j) {
            const float weight = 255.0f * expf(h.scores[j] - top);
            if (weight != weight) sum = NAN;
            const int32_t code = weight == weight ? (int32_t)lrintf(weight) : 0;
            total += code;
            for (size_t i = 0; i < p.head_size; ++i) products[i] += code * h.values[j * p.head_size + i];
        }
        sum += factor * (float)total;
        for (size_t i = 0; i < p.head_size; ++i) h.mixed[i] += factor * (float)products[i];
        begin = end;
    }
    uint16_t* out = p.out + query * p.out_stride + column;
    for (size_t i = 0; i < p.head_size; ++i) out[i] = to_bf16(h.mixed[i] * (h.value_scale[i] / sum));
}

}  // namespace

void attention_int8_scalar(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                           void* scratch) {
    const size_t tokens = p->tokens, size = p->head_size;
    float* floats = (float*)scratch;
    Head h{.key_scale = floats, .value_scale = floats + tokens, .scores = floats + tokens + size, .mixed = nullptr};
    h.mixed = h.scores + tokens;
    h.keys = (int8_t*)(h.mixed + size);
    h.values = h.keys + tokens * size;
    for (size_t head = head_begin; head < head_end; ++head) {
        if (!prepare(*p, head, h)) {
            attention_scalar(p, head, head + 1, query_begin, query_end, scratch);
            continue;
        }
        for (size_t query = query_begin; query < query_end; ++query) attend(*p, head, query, h);
    }
}
