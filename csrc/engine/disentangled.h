// Disentangled attention (He et al. 2021, 2006.03654): what a head adds to the score of query i and key j,
//
//   q[i] . key_table[row[j - i]] + k[j] . query_table[row[j - i]]
//
// or one of the two. The products of tokens with all rows of a table that a sequence uses are one linear; gathered by
// distance they become the bias [tokens, tokens] that attention takes. Everything is internal to the file that includes
// it.
#pragma once
#include <string.h>
#include <xmmintrin.h>

#include "program.h"
#include "sizes.h"
#include "threads/share.h"

namespace {

constexpr size_t kTokensAtOnce = 64;  // whose products are gathered before they leave L2
constexpr size_t kApart = 16;         // floats between rows: those a multiple of 1 KiB apart would share their L1 sets

// The rows of a table that distances -(tokens - 1) to tokens - 1 use: whole blocks, as a linear computes them.
struct TableRows {
    size_t first, count;
};

inline TableRows rows_used(const AttendDisentangled& op, size_t tokens) {
    const ptrdiff_t last = ptrdiff_t(tokens) - 1;
    const size_t first = op.row[-last] / kBlock * kBlock;
    return {first, round_up(op.row[last] + 1, kBlock) - first};
}

// Where the parts of a head's scratch begin, in bytes, each at a multiple of 64.
struct BiasScratch {
    size_t bias_stride, stride;  // of a row of the bias, of products, in floats
    size_t products;             // f32 [kTokensAtOnce, stride]; the bias lies before them
    size_t zeros;                // f32 [rows used]
    size_t x;                    // bf16 [kTokensAtOnce, head size padded]
    size_t bytes;
};

inline BiasScratch bias_scratch(const AttendDisentangled& op, size_t tokens) {
    const size_t rows = rows_used(op, tokens).count, stride = rows + kApart;
    const size_t bias_stride = round_up(tokens, 16) + kApart;
    const size_t products = tokens * bias_stride * sizeof(float);
    const size_t zeros = products + kTokensAtOnce * stride * sizeof(float), x = zeros + rows * sizeof(float);
    return {bias_stride, stride, products, zeros, x, x + kTokensAtOnce * round_up(op.head_size, 32) * sizeof(uint16_t)};
}

// A head on its way: products [tokens begin to begin + count, rows from `first` on] are added to a bias.
struct Gather {
    const int32_t* row;
    const float* products;
    ptrdiff_t first, near;  // of distances -near to near each has the row after that of the one before
    ptrdiff_t stride, begin, count, tokens;
    float* bias;
    ptrdiff_t bias_stride;
};

inline ptrdiff_t near_of(const AttendDisentangled& op, ptrdiff_t tokens) {
    ptrdiff_t d = 0;
    while (d + 1 < tokens && op.row[d + 1] - op.row[d] == 1 && op.row[-d] - op.row[-d - 1] == 1) ++d;
    return d;
}

// Products of queries, to their rows of the bias.
inline void gather_queries(const Gather& g) {
    for (ptrdiff_t i = 0; i < g.count; ++i) {
        const ptrdiff_t q = g.begin + i;
        const ptrdiff_t from = q > g.near ? q - g.near : 0, to = q + g.near < g.tokens ? q + g.near + 1 : g.tokens;
        const int32_t* row = g.row - q;
        const float* products = g.products + i * g.stride;
        const float* near = products + (row[from] - g.first);
        float* out = g.bias + q * g.bias_stride;
        for (ptrdiff_t j = 0; j < from; ++j) out[j] += products[row[j] - g.first];
        for (ptrdiff_t j = from; j < to; ++j) out[j] += near[j - from];
        for (ptrdiff_t j = to; j < g.tokens; ++j) out[j] += products[row[j] - g.first];
    }
}

// Products of keys [i, i + 4), to their columns of queries [q, q + 4). A key's products of near queries lie in a row,
// the last query first: four such rows, transposed.
inline void gather_square(const Gather& g, ptrdiff_t q, ptrdiff_t i) {
    const float* products = g.products + i * g.stride + (g.row[g.begin + i - (q + 3)] - g.first);
    __m128 a = _mm_loadu_ps(products), b = _mm_loadu_ps(products + g.stride + 1),
           c = _mm_loadu_ps(products + 2 * (g.stride + 1)), d = _mm_loadu_ps(products + 3 * (g.stride + 1));
    _MM_TRANSPOSE4_PS(a, b, c, d);
    float* out = g.bias + q * g.bias_stride + g.begin + i;
    for (const __m128 of_query : {d, c, b, a}) {
        _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), of_query));
        out += g.bias_stride;
    }
}

// Products of keys, to their columns of the bias.
inline void gather_keys(const Gather& g) {
    for (ptrdiff_t q = 0; q < g.tokens; q += 4) {
        for (ptrdiff_t i = 0; i < g.count; i += 4) {
            const ptrdiff_t distance = g.begin + i - q;  // of the first two; others are up to 3 more or less
            const ptrdiff_t q_end = q + 4 < g.tokens ? q + 4 : g.tokens, i_end = i + 4 < g.count ? i + 4 : g.count;
            if (distance - 3 >= -g.near && distance + 3 <= g.near && q_end == q + 4 && i_end == i + 4) {
                gather_square(g, q, i);
                continue;
            }
            for (ptrdiff_t query = q; query < q_end; ++query) {
                const int32_t* row = g.row + (g.begin - query);
                float* out = g.bias + query * g.bias_stride + g.begin;
                for (ptrdiff_t key = i; key < i_end; ++key) out[key] += g.products[key * g.stride + row[key] - g.first];
            }
        }
    }
}

// The bias of one head, into the beginning of the scratch. in: the rows of q, k and v of a sequence.
inline void disentangle(const AttendDisentangled& op, LinearBf16Fn* multiply, const uint16_t* in, size_t in_stride,
                        size_t head, size_t tokens, char* scratch) {
    const TableRows used = rows_used(op, tokens);
    const BiasScratch w = bias_scratch(op, tokens);
    float *bias = reinterpret_cast<float*>(scratch), *products = reinterpret_cast<float*>(scratch + w.products);
    float* zeros = reinterpret_cast<float*>(scratch + w.zeros);
    uint16_t* x = reinterpret_cast<uint16_t*>(scratch + w.x);
    const size_t k_padded = round_up(op.head_size, 32), table = (head * op.table_rows + used.first) * k_padded;
    Gather gather{.row = op.row,
                  .products = products,
                  .first = ptrdiff_t(used.first),
                  .near = near_of(op, tokens),
                  .stride = ptrdiff_t(w.stride),
                  .begin = 0,
                  .count = 0,
                  .tokens = ptrdiff_t(tokens),
                  .bias = bias,
                  .bias_stride = ptrdiff_t(w.bias_stride)};
    memset(bias, 0, w.products);
    memset(zeros, 0, w.x - w.zeros);
    memset(x, 0, w.bytes - w.x);  // what lies beyond the head size stays zero
    for (const bool of_queries : {true, false}) {
        const uint16_t* tables = of_queries ? op.key_table : op.query_table;
        if (!tables) continue;
        const uint16_t* from = in + ((of_queries ? 0 : op.heads) + head) * op.head_size;
        const LinearBf16 linear{.x = x,
                                .x_stride = k_padded,
                                .weight = tables + table,
                                .bias = zeros,
                                .y = products,
                                .out_stride = w.stride,
                                .n = used.count,
                                .k_padded = k_padded,
                                .activation = Activation::kNone,
                                .output = Output::kF32};
        for (size_t begin = 0; begin < tokens; begin += kTokensAtOnce) {
            const size_t count = tokens - begin < kTokensAtOnce ? tokens - begin : kTokensAtOnce;
            for (size_t i = 0; i < count; ++i) {
                memcpy(x + i * k_padded, from + (begin + i) * in_stride, op.head_size * sizeof(uint16_t));
            }
            multiply(&linear, 0, count, 0, used.count / kBlock);
            gather.begin = ptrdiff_t(begin);
            gather.count = ptrdiff_t(count);
            (of_queries ? gather_queries : gather_keys)(gather);
        }
    }
}

}  // namespace
