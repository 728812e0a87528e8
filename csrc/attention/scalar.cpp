// attention, the definition in C++. See contract.h.
#include <math.h>

#include "common.h"
#include "contract.h"
#include "vectors/bf16.h"

static void attend(const Attention& p, size_t head, size_t query, float* weights) {
    const size_t column = head * p.head_size;
    const uint16_t* q = p.q + query * p.stride + column;
    const Range keys = seen_by(p, query, query + 1);
    const float* bias = p.bias ? bias_of(p, head, query) : nullptr;
    float largest = -INFINITY, sum = 0.0f;
    for (size_t j = keys.begin; j < keys.end; ++j) {
        const uint16_t* k = p.k + j * p.stride + column;
        float dot = 0.0f;
        for (size_t i = 0; i < p.head_size; ++i) dot += widen(q[i]) * widen(k[i]);
        const float score = dot * p.scale + (bias ? bias[j] : 0.0f);
        weights[j] = score;
        largest = score > largest ? score : largest;
    }
    for (size_t j = keys.begin; j < keys.end; ++j) {
        weights[j] = widen(to_bf16(expf(weights[j] - largest)));
        sum += weights[j];
    }
    for (size_t i = 0; i < p.head_size; ++i) {
        float mean = 0.0f;
        for (size_t j = keys.begin; j < keys.end; ++j) mean += weights[j] * widen(p.v[j * p.stride + column + i]);
        p.out[query * p.out_stride + column + i] = to_bf16(mean / sum);
    }
}

void attention_scalar(const Attention* p, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                      void* scratch) {
    for (size_t head = head_begin; head < head_end; ++head) {
        for (size_t query = query_begin; query < query_end; ++query) attend(*p, head, query, (float*)scratch);
        poison(*p, head, query_begin, query_end);
    }
}
