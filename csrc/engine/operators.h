// Each operator on one group of sequences: which part of it one of the threads that share the group computes.
// Everything is internal to the file that includes it.
#pragma once
#include <string.h>

#include "attention.h"
#include "convolution.h"
#include "dispatch.h"
#include "linears.h"
#include "past.h"
#include "pooling.h"
#include "program.h"
#include "work.h"

namespace {

// Bytes of scratch that an operator takes, for sequences of up to `tokens` tokens.
template <class Op>
size_t scratch_bytes(const Op&, const std::vector<Buffer>&, size_t) {
    return 0;
}

size_t scratch_bytes(const Round& op, const std::vector<Buffer>& buffers, size_t) {
    return code_stride(buffers[op.in].width) * sizeof(float);  // codes, or values
}

// Bytes that the threads which share a step have together for an operator.
template <class Op>
size_t shared_bytes(const Op&, const Batch&, size_t) {
    return 0;
}

void run(const Embed& op, const Work& w) {
    const Share mine = w.mine(op.out);
    const size_t width = w.buffers[op.out].width, stride = w.stride(op.out);
    const RowOperators& rows = *best(rows_variants, w.isa);
    const size_t word_bytes = width * (op.kind == WordKind::kInt8 ? 1 : op.kind == WordKind::kBf16 ? 2 : 4);
    const int64_t origin = w.batch.starts[w.first];
    const int32_t* ids = w.batch.ids;
    const int64_t* starts = w.batch.starts;
    const auto counts = [&](int64_t token) { return ids[token] != op.padding; };
    size_t s = w.first;
    int64_t counted = starts[s];  // tokens from here on are not in `place` yet
    size_t place = 0;
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const int64_t token = origin + row;
        if (starts[s + 1] <= token) {
            while (starts[s + 1] <= token) ++s;
            counted = starts[s];
            place = 0;
        }
        for (; counted < token; ++counted) place += counts(counted);
        float* out = w.at<float>(op.out) + row * stride;
        const size_t id = ids[token];
        const size_t position = counts(token) ? op.first_position + w.past(s) + place : op.first_position - 1;
        const size_t type = w.batch.types ? w.batch.types[token] : 0;
        rows.embed({.word = static_cast<const char*>(op.words) + id * word_bytes,
                    .kind = op.kind,
                    .scale = op.word_scale ? op.word_scale[id] : 1.0f,
                    .position = op.positions ? op.positions + position * width : nullptr,
                    .type = op.types ? op.types + type * width : nullptr,
                    .factor = op.factor},
                   out, width);
    }
}

void run(const NormRows& op, const Work& w) {
    constexpr size_t kRows = 8;  // that stay in L1 until they are quantized
    const Share mine = w.mine(op.x);
    const bool bf16 = w.buffers[op.x].kind == BufferKind::kBf16;
    const RowOperators& rows = *best(rows_variants, w.isa);
    const auto widen = [&](size_t begin, size_t end) {  // x as y, which the norm then takes it from
        for (size_t row = begin; bf16 && row < end; ++row) {
            const uint16_t* x = w.at<uint16_t>(op.x) + row * w.stride(op.x);
            rows.widen(x, w.at<float>(op.y) + row * w.stride(op.y), w.buffers[op.x].width);
        }
    };
    const Norm norm{.x = w.at<float>(bf16 ? op.y : op.x),
                    .residual = op.residual_after ? nullptr : w.at<float>(op.residual),
                    .sum = w.at<float>(op.sum),
                    .y = w.at<float>(op.y),
                    .weight = op.weight,
                    .bias = op.bias,
                    .stride = w.stride(op.y),
                    .n = w.buffers[op.x].width,
                    .eps = op.eps,
                    .centred = op.centred};
    NormFn* norm_fn = best(norm_variants, w.isa);
    const auto add_residual = [&](size_t begin, size_t end) {
        for (size_t row = begin; op.residual_after && row < end; ++row) {
            add_scaled(w.at<float>(op.y) + row * norm.stride, w.at<float>(op.residual) + row * norm.stride, 1.0f,
                       norm.n);
        }
    };
    const size_t step = bf16 || op.residual_after || op.codes != kNone ? kRows : mine.end - mine.begin;
    for (size_t row = mine.begin; row < mine.end; row += step) {
        const size_t end = row + step < mine.end ? row + step : mine.end;
        widen(row, end);
        norm_fn(&norm, row, end);
        add_residual(row, end);
        if (op.codes != kNone) w.quantize(op.y, op.codes, op.grid, row, end);
    }
}

size_t scratch_bytes(const NormColumns& op, const std::vector<Buffer>&, size_t) { return op.n * sizeof(float); }

void run(const NormColumns& op, const Work& w) {
    const Share mine = w.mine(op.rows);
    const RowOperators& rows = *best(rows_variants, w.isa);
    float* values = reinterpret_cast<float*>(w.scratch);
    const Norm norm{.x = values,
                    .residual = nullptr,
                    .sum = nullptr,
                    .y = values,
                    .weight = op.weight,
                    .bias = nullptr,
                    .stride = op.n,
                    .n = op.n,
                    .eps = op.eps,
                    .centred = false};
    for (size_t row = mine.begin; row < mine.end; ++row) {
        uint16_t* columns = w.at<uint16_t>(op.rows) + row * w.stride(op.rows) + op.column;
        rows.widen(columns, values, op.n);
        best(norm_variants, w.isa)(&norm, 0, 1);
        rows.round(values, columns, op.n);
    }
}

void run(const Quantize& op, const Work& w) {
    const Share mine = w.mine(op.in);
    w.quantize(op.in, op.out, op.grid, mine.begin, mine.end);
}

void run(const Select& op, const Work& w) {
    const Share mine = w.mine(op.out);
    const size_t stride = w.stride(op.in);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        memcpy(w.at<float>(op.out) + row * stride, w.at<float>(op.in) + w.batch.outputs[row] * stride,
               w.buffers[op.in].width * sizeof(float));
    }
}

void run(const Round& op, const Work& w) {
    w.clear_padding(op.out);
    const RowOperators& rows = *best(rows_variants, w.isa);
    const Share mine = w.mine(op.in);
    const Buffer& in = w.buffers[op.in];
    const size_t row_bytes = w.stride(op.in) * (in.kind == BufferKind::kBf16 ? 2 : 4);
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
            if (in.kind == BufferKind::kBf16) {
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

void run(const Pool& op, const Work& w) {
    const Share mine = w.mine(op.out);
    const size_t width = w.buffers[op.in].width, stride = w.stride(op.in);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const int64_t *start = w.batch.starts + w.first + row, tokens = start[1] - start[0];
        const float* in = w.at<float>(op.in) + (start[0] - w.batch.starts[w.first]) * stride;
        float* out = w.at<float>(op.out) + row * w.stride(op.out) + op.column;
        switch (op.mode) {
            case PoolMode::kCls:
                memcpy(out, in, width * sizeof(float));
                break;
            case PoolMode::kLast:
                memcpy(out, in + (tokens - 1) * stride, width * sizeof(float));
                break;
            case PoolMode::kMax:
                memcpy(out, in, width * sizeof(float));
                for (int64_t t = 1; t < tokens; ++t) maximum(out, in + t * stride, width);
                break;
            default:
                memset(out, 0, width * sizeof(float));
                for (int64_t t = 0; t < tokens; ++t) {
                    add_scaled(out, in + t * stride, op.mode == PoolMode::kWeightedMean ? float(t + 1) : 1.0f, width);
                }
                const double weights = op.mode == PoolMode::kWeightedMean ? tokens * (tokens + 1) / 2.0
                                       : op.mode == PoolMode::kMean       ? double(tokens)
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
        if (buffer.kind == BufferKind::kBf16) {
            rows.activate_bf16(w.at<uint16_t>(op.rows) + row * w.stride(op.rows), op.function, buffer.width);
        } else {
            rows.activate(w.at<float>(op.rows) + row * w.stride(op.rows), op.function, buffer.width);
        }
    }
}

void run(const Repeat& op, const Work& w) {
    const Share mine = w.mine(op.in);
    const size_t value = w.buffers[op.in].kind == BufferKind::kBf16 ? sizeof(uint16_t) : sizeof(float);
    const size_t bytes = w.buffers[op.in].width * value;
    w.clear_padding(op.out);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const char* in = w.at<char>(op.in) + row * w.stride(op.in) * value;
        char* out = w.at<char>(op.out) + row * w.stride(op.out) * value;
        memcpy(out, in, bytes);
        memcpy(out + bytes, in, bytes);
    }
}

size_t scratch_bytes(const Gate& op, const std::vector<Buffer>& buffers, size_t) {
    return round_up(buffers[op.out].width, 64) * sizeof(float);
}

void run(const Gate& op, const Work& w) {
    w.clear_padding(op.out);
    const RowOperators& rows = *best(rows_variants, w.isa);
    const Share mine = w.mine(op.in);
    const size_t width = w.buffers[op.out].width;
    float* product = reinterpret_cast<float*>(w.scratch);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const uint16_t* in = w.at<uint16_t>(op.in) + row * w.stride(op.in);
        rows.gate(in, in + width, op.function, product, width);
        switch (w.buffers[op.out].kind) {
            case BufferKind::kF32:
                memcpy(w.at<float>(op.out) + row * w.stride(op.out), product, width * sizeof(float));
                break;
            case BufferKind::kBf16:
                rows.round(product, w.at<uint16_t>(op.out) + row * w.stride(op.out), width);
                break;
            default:
                w.quantize_row(product, op.out, op.grid, row);
        }
    }
}

void run(const Add& op, const Work& w) {
    const Share mine = w.mine(op.rows);
    const size_t stride = w.stride(op.rows);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const float* in = w.at<float>(op.in) + row * stride;
        add_scaled(w.at<float>(op.rows) + row * stride, in, 1.0f, w.buffers[op.rows].width);
    }
}

void run(const Softcap& op, const Work& w) {
    const Share mine = w.mine(op.rows);
    const RowOperators& rows = *best(rows_variants, w.isa);
    const size_t width = w.buffers[op.rows].width;
    for (size_t row = mine.begin; row < mine.end; ++row) {
        float* values = w.at<float>(op.rows) + row * w.stride(op.rows);
        multiply(values, 1.0f / op.cap, width);
        rows.activate(values, Function::kTanh, width);
        multiply(values, op.cap, width);
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
        const size_t position = w.past(s) + row - (w.batch.starts[s] - origin);
        uint16_t* values = w.at<uint16_t>(op.rows) + row * w.stride(op.rows);
        rows.rotate(values, op.heads, op.head_size, op.head_size, op.cos + position * half, op.sin + position * half);
    }
}

}  // namespace
