// Attention on one group of sequences: see operators.h. Everything is internal to the file that includes it.
#pragma once
#include "disentangled.h"
#include "dispatch.h"
#include "program.h"
#include "work.h"

namespace {

template <class Op>
size_t own_scratch_bytes(const Op& op, size_t tokens) {
    return (op.integer ? attention_int8_scratch_bytes : attention_scratch_bytes)(tokens, op.head_size);
}

template <class Op>
AttentionFn* attention_fn(const Op& op, const Work& w) {
    return best(op.integer ? attention_int8_variants : attention_variants, w.isa);
}

size_t scratch_bytes(const Attend& op, const std::vector<Buffer>&, size_t tokens) {
    return own_scratch_bytes(op, tokens);
}

size_t scratch_bytes(const AttendDisentangled& op, const std::vector<Buffer>&, size_t tokens) {
    return bias_scratch(op, tokens).bytes + own_scratch_bytes(op, tokens);
}

// Heads of sequences are handed out by what they cost, the square of the length. attend(row, tokens, first head, end of
// heads): of the sequence whose first token is this row of the group.
template <class Fn>
void share_heads(const Work& w, size_t heads, Fn attend) {
    const int64_t *starts = w.batch.starts, origin = starts[w.first];
    const auto cost = [&](size_t s) { return double(starts[s + 1] - starts[s]) * (starts[s + 1] - starts[s]); };
    double total = 0.0, before = 0.0;
    for (size_t s = w.first; s < w.last; ++s) total += cost(s) * heads;
    const double begin = total * w.index / w.count,
                 end = w.index + 1 == w.count ? 2 * total : total * (w.index + 1) / w.count;
    for (size_t s = w.first; s < w.last; ++s) {
        // Heads whose middle lies in this thread's part of the whole.
        size_t head = 0, last = heads;
        if (w.count > 1) {
            while (head < heads && before + (head + 0.5) * cost(s) < begin) ++head;
            last = head;
            while (last < heads && before + (last + 0.5) * cost(s) < end) ++last;
        }
        if (head < last) attend(size_t(starts[s] - origin), size_t(starts[s + 1] - starts[s]), head, last);
        before += cost(s) * heads;
    }
}

// One sequence of an operator's rows, without bias or window.
template <class Op>
Attention attention_of(const Op& op, const Work& w, size_t row, size_t tokens) {
    const size_t stride = w.stride(op.in), out_stride = w.stride(op.out), width = op.heads * op.head_size;
    const uint16_t* q = w.at<uint16_t>(op.in) + row * stride;
    return {.q = q,
            .k = q + width,
            .v = q + 2 * width,
            .stride = stride,
            .out = w.at<uint16_t>(op.out) + row * out_stride,
            .out_stride = out_stride,
            .tokens = tokens,
            .head_size = op.head_size,
            .scale = op.scale,
            .bias = nullptr,
            .bias_stride = 0,
            .bias_query_step = 0,
            .window = kNoWindow};
}

void run(const Attend& op, const Work& w) {
    w.clear_padding(op.out);
    AttentionFn* attention = attention_fn(op, w);
    share_heads(w, op.heads, [&](size_t row, size_t tokens, size_t head, size_t last) {
        Attention one = attention_of(op, w, row, tokens);
        one.bias = op.bias;
        one.bias_stride = op.bias_stride;
        one.bias_query_step = -1;
        one.window = op.window;
        attention(&one, head, last, 0, tokens, w.scratch);
    });
}

void run(const AttendDisentangled& op, const Work& w) {
    w.clear_padding(op.out);
    AttentionFn* attention = attention_fn(op, w);
    LinearBf16Fn* multiply = best(linear_bf16_variants, w.isa);
    share_heads(w, op.heads, [&](size_t row, size_t tokens, size_t head, size_t last) {
        const BiasScratch scratch = bias_scratch(op, tokens);
        Attention one = attention_of(op, w, row, tokens);
        one.bias = reinterpret_cast<const float*>(w.scratch);
        one.bias_query_step = ptrdiff_t(scratch.bias_stride);
        for (; head < last; ++head) {
            disentangle(op, multiply, one.q, one.stride, head, tokens, w.scratch);
            attention(&one, head, head + 1, 0, tokens, w.scratch + scratch.bytes);
        }
    });
}

}  // namespace
