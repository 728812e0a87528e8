// Each operator on one group of sequences: which part of it one of the threads that share the group computes.
// Everything is internal to the file that includes it.
#pragma once
#include <string.h>

#include "disentangled.h"
#include "dispatch.h"
#include "linear_w8a8/count.h"
#include "pooling.h"
#include "program.h"
#include "sizes.h"
#include "work.h"

namespace {

// Rows per thread from which on a linear is cut by rows: fewer, and each thread reading all the weights costs more than
// the wait that a cut by columns brings.
constexpr size_t kRowsPerThread = 48;
// The same where each thread would unpack all the weights too, which takes as long as some 50 rows with AMX.
constexpr size_t kRowsPerUnpacking = 256;

// Bytes of scratch that an operator takes, for sequences of up to `tokens` tokens.
template <class Op>
size_t scratch_bytes(const Op&, const std::vector<Buffer>&, size_t) {
    return 0;
}

size_t scratch_bytes(const Round& op, const std::vector<Buffer>& buffers, size_t) {
    return code_stride(buffers[op.in].width) * sizeof(float);  // codes, or values
}

size_t scratch_bytes(const MultiplyWna16& op, const std::vector<Buffer>&, size_t) {
    return wna16_scratch_bytes(op.weight.k);
}

size_t scratch_bytes(const Attend& op, const std::vector<Buffer>&, size_t tokens) {
    return attention_scratch_bytes(tokens, op.head_size);
}

size_t scratch_bytes(const AttendDisentangled& op, const std::vector<Buffer>&, size_t tokens) {
    return bias_scratch(op, tokens).bytes + attention_scratch_bytes(tokens, op.head_size);
}

void run(const Embed& op, const Work& w) {
    const Share mine = w.mine(op.out);
    const size_t width = w.buffers[op.out].width, stride = w.stride(op.out);
    const RowOperators& rows = *best(rows_variants, w.isa);
    const WordKind kind = op.word_scale ? WordKind::kInt8 : op.words_bf16 ? WordKind::kBf16 : WordKind::kF32;
    const size_t word_bytes = width * (op.word_scale ? 1 : op.words_bf16 ? 2 : 4);
    const int64_t origin = w.batch.starts[w.first];
    size_t s = w.first;
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const int64_t token = origin + row;
        while (w.batch.starts[s + 1] <= token) ++s;
        float* out = w.at<float>(op.out) + row * stride;
        const size_t id = w.batch.ids[token];
        const size_t position = op.first_position + token - w.batch.starts[s];
        const size_t type = w.batch.types ? w.batch.types[token] : 0;
        rows.embed({.word = static_cast<const char*>(op.words) + id * word_bytes,
                    .kind = kind,
                    .scale = op.word_scale ? op.word_scale[id] : 1.0f,
                    .position = op.positions ? op.positions + position * width : nullptr,
                    .type = op.types ? op.types + type * width : nullptr},
                   out, width);
    }
}

void run(const NormRows& op, const Work& w) {
    constexpr size_t kRows = 8;  // that stay in L1 until they are quantized
    const Share mine = w.mine(op.x);
    const Norm norm{.x = w.at<float>(op.x),
                    .residual = w.at<float>(op.residual),
                    .sum = w.at<float>(op.sum),
                    .y = w.at<float>(op.y),
                    .weight = op.weight,
                    .bias = op.bias,
                    .stride = w.stride(op.x),
                    .n = w.buffers[op.x].width,
                    .eps = op.eps};
    NormFn* norm_fn = best(norm_variants, w.isa);
    if (op.codes == kNone) return norm_fn(&norm, mine.begin, mine.end);
    const QuantizeRows quantize = w.quantizer(op.y, op.codes, op.grid);
    QuantizeRowsFn* quantize_fn = best(quantize_rows_variants, w.isa);
    for (size_t row = mine.begin; row < mine.end; row += kRows) {
        const size_t end = row + kRows < mine.end ? row + kRows : mine.end;
        norm_fn(&norm, row, end);
        quantize_fn(&quantize, row, end);
    }
}

void run(const Quantize& op, const Work& w) {
    const QuantizeRows quantize = w.quantizer(op.in, op.out, op.grid);
    const Share mine = w.mine(op.in);
    best(quantize_rows_variants, w.isa)(&quantize, mine.begin, mine.end);
}

void run(const Round& op, const Work& w) {
    w.clear_padding(op.out);
    const RowOperators& rows = *best(rows_variants, w.isa);
    const Share mine = w.mine(op.in);
    const Buffer& in = w.buffers[op.in];
    const size_t row_bytes = w.stride(op.in) * (in.kind == Kind::kBf16 ? 2 : 4);
    QuantizeRowsFn* quantize_fn = best(quantize_rows_variants, w.isa);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const char* x = w.at<char>(op.in) + row * row_bytes;
        uint16_t* out = w.at<uint16_t>(op.out) + row * w.stride(op.out);
        if (op.on_grid) {
            uint8_t* codes = reinterpret_cast<uint8_t*>(w.scratch);
            float scale;
            int32_t zero;
            QuantizeRows one = w.quantizer(op.in, op.in, op.grid);
            one.x = x, one.codes = codes, one.scale = &scale, one.zero_point = &zero;
            quantize_fn(&one, 0, 1);
            rows.place(codes, scale, zero, out, in.width);
        } else {
            const float* values = reinterpret_cast<const float*>(x);
            float* changed = reinterpret_cast<float*>(w.scratch);
            if (in.kind == Kind::kBf16) {
                rows.widen(reinterpret_cast<const uint16_t*>(x), changed, in.width);
                values = changed;
            }
            if (op.grid.shift) {
                rows.transform(values, op.grid.shift, op.grid.multiplier, changed, in.width);
                values = changed;
            }
            rows.round(values, out, in.width);
        }
    }
}

// By rows if there are enough of them for each thread, else by columns.
template <class Op, class Fn>
void cut_multiply(const Op& op, Fn fn, const Work& w, int in, size_t n, size_t least_rows = kRowsPerThread) {
    const size_t rows = w.rows(in), blocks = (n + kBlock - 1) / kBlock;
    if (w.count == 1 || rows >= least_rows * w.count) {
        const Share mine = w.mine(in, 32);
        fn(&op, mine.begin, mine.end, 0, blocks);
    } else {
        const Share mine = share_of(blocks, 4, w.index, w.count);
        fn(&op, 0, rows, mine.begin, mine.end);
    }
}

void run(const MultiplyW8A8& op, const Work& w) {
    w.clear_padding(op.out);
    const LinearW8A8 linear{
        .codes = w.at<uint8_t>(op.in),
        .code_stride = w.stride(op.in),
        .scale_m = w.scale(op.in),
        .zero_m = w.zero(op.in),
        .weight = op.weight,
        .colsum = op.colsum,
        .scale_n = op.scale_n,
        .bias = op.bias,
        .y = w.column(op.out, op.column),
        .out_stride = w.stride(op.out),
        .n = op.n,
        .k_padded = round_up(w.buffers[op.in].width, kPadK),
        .activation = op.activation,
        .output = w.output(op.out),
        .grid = {op.grid.shift, op.grid.multiplier, op.grid.static_scale, op.grid.static_zero_point, op.grid.code_min}};
    if (linear.output == Output::kCodes) w.mark_rows(op.in, op.out, op.grid);
    if (w.index == 0 && w.first == 0) integer_linears += op.linears;  // once a batch, as without the engine
    cut_multiply(linear, best(linear_w8a8_variants, w.isa), w, op.in, op.n);
}

// A linear of bf16 rows, whose weight is given or left out.
template <class Op>
LinearBf16 linear_of(const Op& op, const uint16_t* weight, const Work& w) {
    return {.x = w.at<uint16_t>(op.in),
            .x_stride = w.stride(op.in),
            .weight = weight,
            .bias = op.bias,
            .y = w.column(op.out, op.column),
            .out_stride = w.stride(op.out),
            .n = op.n,
            .k_padded = round_up(w.buffers[op.in].width, 32),
            .activation = op.activation,
            .output = w.output(op.out)};
}

void run(const MultiplyBf16& op, const Work& w) {
    w.clear_padding(op.out);
    const LinearBf16 linear = linear_of(op, op.weight, w);
    cut_multiply(linear, best(linear_bf16_variants, w.isa), w, op.in, op.n);
}

void run(const MultiplyWna16& op, const Work& w) {
    w.clear_padding(op.out);
    const LinearWna16 linear{.linear = linear_of(op, nullptr, w), .weight = op.weight};
    const auto multiply = [&](const LinearWna16* p, size_t row_begin, size_t row_end, size_t begin, size_t end) {
        linear_wna16(w.isa, p, row_begin, row_end, begin, end, w.scratch);
    };
    cut_multiply(linear, multiply, w, op.in, op.n, kRowsPerUnpacking);
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
    AttentionFn* attention = best(attention_variants, w.isa);
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
    AttentionFn* attention = best(attention_variants, w.isa);
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

void run(const Pool& op, const Work& w) {
    const Share mine = w.mine(op.out);
    const size_t width = w.buffers[op.in].width, stride = w.stride(op.in);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const int64_t *start = w.batch.starts + w.first + row, tokens = start[1] - start[0];
        const float* in = w.at<float>(op.in) + (start[0] - w.batch.starts[w.first]) * stride;
        float* out = w.at<float>(op.out) + row * w.stride(op.out) + op.column;
        switch (op.mode) {
            case Pooling::kCls:
                memcpy(out, in, width * sizeof(float));
                break;
            case Pooling::kLast:
                memcpy(out, in + (tokens - 1) * stride, width * sizeof(float));
                break;
            case Pooling::kMax:
                memcpy(out, in, width * sizeof(float));
                for (int64_t t = 1; t < tokens; ++t) maximum(out, in + t * stride, width);
                break;
            default:
                memset(out, 0, width * sizeof(float));
                for (int64_t t = 0; t < tokens; ++t) {
                    add_scaled(out, in + t * stride, op.mode == Pooling::kWeightedMean ? float(t + 1) : 1.0f, width);
                }
                const double weights = op.mode == Pooling::kWeightedMean ? tokens * (tokens + 1) / 2.0
                                       : op.mode == Pooling::kMean       ? double(tokens)
                                                                         : __builtin_sqrt(double(tokens));
                multiply(out, float(1.0 / weights), width);
        }
    }
}

void run(const Normalize& op, const Work& w) {
    const Share mine = w.mine(op.rows);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        to_unit_length(w.at<float>(op.rows) + row * w.stride(op.rows), w.buffers[op.rows].width);
    }
}

void run(const Activate& op, const Work& w) {
    const Share mine = w.mine(op.rows);
    const Buffer& buffer = w.buffers[op.rows];
    const RowOperators& rows = *best(rows_variants, w.isa);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        if (buffer.kind == Kind::kBf16) {
            rows.activate_bf16(w.at<uint16_t>(op.rows) + row * w.stride(op.rows), op.function, buffer.width);
        } else {
            rows.activate(w.at<float>(op.rows) + row * w.stride(op.rows), op.function, buffer.width);
        }
    }
}

void run(const Gate& op, const Work& w) {
    w.clear_padding(op.out);
    const RowOperators& rows = *best(rows_variants, w.isa);
    const Share mine = w.mine(op.in);
    const size_t width = w.buffers[op.out].width;
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const uint16_t* in = w.at<uint16_t>(op.in) + row * w.stride(op.in);
        rows.gate(in, in + width, w.at<uint16_t>(op.out) + row * w.stride(op.out), width);
    }
}

void run(const Rotate& op, const Work& w) {
    const Share mine = w.mine(op.rows);
    const size_t half = op.head_size / 2;
    const RowOperators& rows = *best(rows_variants, w.isa);
    const int64_t origin = w.batch.starts[w.first];
    size_t s = w.first;
    for (size_t row = mine.begin; row < mine.end; ++row) {
        while (w.batch.starts[s + 1] - origin <= int64_t(row)) ++s;
        const size_t position = row - (w.batch.starts[s] - origin);
        uint16_t* values = w.at<uint16_t>(op.rows) + row * w.stride(op.rows);
        rows.rotate(values, op.heads, op.head_size, op.cos + position * half, op.sin + position * half);
    }
}

}  // namespace
