// What a query sees, and what becomes of values that are not finite. Everything is internal to the file that includes
// it.
#pragma once
#include "contract.h"
#include "sizes.h"

namespace {

// 2^x for x in [-1/2, 1/2]: minimax, relative error 7.5e-5. Lowest power first.
constexpr float kPower[4] = {0.99992806f, 0.69326097f, 0.24261113f, 0.05517167f};
constexpr float kLog2E = 1.44269504f;

struct Range {
    size_t begin, end;
};

// The keys that one of the queries [begin, end) sees; as well the queries that see one of these keys.
inline Range seen_by(const Attention& p, size_t begin, size_t end) {
    return {begin > p.window ? begin - p.window : 0, p.tokens - end >= p.window ? end + p.window : p.tokens};
}

// Whether each of the queries [begin, end) sees every one of the keys.
inline bool all_seen(const Attention& p, size_t begin, size_t end, Range keys) {
    return (end - 1 <= keys.begin || end - 1 - keys.begin <= p.window) &&
           (keys.end - 1 <= begin || keys.end - 1 - begin <= p.window);
}

// What is added to a query's score of key 0; that of key j is j floats on.
inline const float* bias_of(const Attention& p, size_t head, size_t query) {
    return p.bias + head * p.bias_stride + (ptrdiff_t)query * p.bias_query_step;
}

inline bool is_finite(uint16_t x) { return (x & 0x7f80) != 0x7f80; }

// A packed value is multiplied by zero for each query of the block that does not see its key, and must not make it NaN.
inline void zero_what_is_not_finite(uint16_t* values, size_t count) {
    for (size_t i = 0; i < count; ++i) values[i] = is_finite(values[i]) ? values[i] : 0;
}

// NaN in what depends on a key or a value that is not finite: from a key the whole row of each query that sees it.
inline void poison(const Attention& p, size_t head, size_t query_begin, size_t query_end) {
    const Range keys = seen_by(p, query_begin, query_end);
    for (size_t j = keys.begin; j < keys.end; ++j) {
        const uint16_t *k = p.k + j * p.stride + head * p.head_size, *v = p.v + j * p.stride + head * p.head_size;
        bool key_is_finite = true;
        for (size_t i = 0; i < p.head_size; ++i) key_is_finite = key_is_finite && is_finite(k[i]);
        const Range queries = seen_by(p, j, j + 1);
        for (size_t i = 0; i < p.head_size; ++i) {
            if (key_is_finite && is_finite(v[i])) continue;
            const size_t end = least(queries.end, query_end);
            for (size_t q = queries.begin > query_begin ? queries.begin : query_begin; q < end; ++q) {
                p.out[q * p.out_stride + head * p.head_size + i] = 0x7fc0;
            }
        }
    }
}

}  // namespace
