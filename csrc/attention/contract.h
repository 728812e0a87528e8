// attention: out[q, h, :] = sum_j softmax_j(scale * q[q, h, :] . k[j, h, :] + bias_h(q, j)) v[j, h, :], of one
// sequence
//
//   q, k, v      bf16, token t of the sequence at q + t * stride, head h of it head_size elements at h * head_size; the
//                three may lie in one buffer; any alignment
//   out          bf16 [tokens, heads * head_size], row t at out + t * out_stride (elements)
//   scale        positive
//   bias         null, or f32: bias[h * bias_stride + q * bias_query_step + j] is added to a score of head h after the
//                scale; finite. A step of -1 is a table by distance: bias points at distance 0, and distances
//                -(tokens - 1) to tokens - 1 are readable. Else a row for each query, readable up to the last token
//   window       keys further than this many tokens from the query, on either side, are left out; kNoWindow for none
//   scratch      attention_scratch_bytes(tokens, head_size) bytes, 64-byte aligned, of the calling thread; any content
//
// Arithmetic: products of bf16 values (exact in f32) summed in f32, in any order; softmax in f32, of scores less the
// row's largest, by 2^x with a relative error below 2^-12; the weights 2^x are rounded to bf16 before they multiply v;
// the row's sum is that of the weights in f32, rounded or not; the result is divided by it, or multiplied by its
// reciprocal, and rounded to bf16, to nearest, half to even. Subnormal numbers may be taken for zero. A NaN or an
// infinity in q gives NaN in the query's row, in k in the rows of the queries that see the key, in v in its dimension
// of those rows.
//
// head_size is a multiple of 8, at most kMaxHeadSize. Queries [query_begin, query_end) of heads [head_begin, head_end)
// are computed, the others not touched. A query's result does not depend on how the range is cut. No allocation,
// threads or state. Keys and values are packed once per head and call: a cut by heads costs less than one by queries.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum : size_t { kMaxHeadSize = 256, kNoWindow = SIZE_MAX };

struct Attention {
    const uint16_t* q;
    const uint16_t* k;
    const uint16_t* v;
    size_t stride;
    uint16_t* out;
    size_t out_stride;
    size_t tokens;
    size_t head_size;
    float scale;
    const float* bias;
    size_t bias_stride;
    ptrdiff_t bias_query_step;
    size_t window;
};

// On one thread. query_begin and query_end: of each of the heads.
using AttentionFn = void(const Attention*, size_t head_begin, size_t head_end, size_t query_begin, size_t query_end,
                         void* scratch);

extern "C" AttentionFn attention_scalar, attention_avx2, attention_avx512, attention_avx512bf16, attention_amx;

// Enough for every variant.
size_t attention_scratch_bytes(size_t tokens, size_t head_size);
