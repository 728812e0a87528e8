// What an operator sees of a run: a group of sequences, its buffers, and which part of it one thread computes.
// Everything is internal to the file that includes it.
#pragma once
#include <string.h>

#include "dispatch.h"
#include "program.h"
#include "threads/pool.h"
#include "threads/share.h"

namespace {

// A group of sequences on its way through the program, as one of the threads that share it sees it.
struct Work {
    const Batch& batch;
    size_t first, last;  // sequences
    const std::vector<Buffer>& buffers;
    Isa isa;
    char* arena;
    size_t capacity;  // rows, a multiple of 16
    char* scratch;    // of this thread
    char* shared;     // of all threads that share the group
    size_t index, count;
    Barrier* barrier;  // of these threads; null for one

    size_t tokens() const { return batch.starts[last] - batch.starts[first]; }
    size_t rows(int buffer) const {
        const Per per = buffers[buffer].per;
        return per == Per::kSequence ? last - first : per == Per::kOutput ? batch.output_count : tokens();
    }
    // Until every thread that shares the group is here.
    void wait() const {
        if (barrier) barrier->wait();
    }
    // Tokens of a sequence that come before its first one here.
    size_t past(size_t sequence) const { return batch.past ? batch.past[sequence] : 0; }
    // This thread's rows of a buffer.
    Share mine(int buffer, size_t grain = 1) const { return share_of(rows(buffer), grain, index, count); }

    template <class T>
    T* at(int buffer) const {
        return buffer == kNone ? nullptr : reinterpret_cast<T*>(arena + buffers[buffer].offset * capacity);
    }
    // Where the first row's values from `column` on lie.
    void* column(int buffer, size_t column) const {
        const BufferKind kind = buffers[buffer].kind;
        return at<char>(buffer) + column * (kind == BufferKind::kF32 ? 4 : kind == BufferKind::kBf16 ? 2 : 1);
    }
    // What a linear writes to a buffer.
    Output output(int buffer) const {
        const BufferKind kind = buffers[buffer].kind;
        return kind == BufferKind::kCodes ? Output::kCodes : kind == BufferKind::kBf16 ? Output::kBf16 : Output::kF32;
    }
    size_t stride(int buffer) const { return row_stride(buffers[buffer]); }
    float* scale(int buffer) const { return reinterpret_cast<float*>(at<char>(buffer) + stride(buffer) * capacity); }
    int32_t* zero(int buffer) const { return reinterpret_cast<int32_t*>(scale(buffer) + capacity); }
    size_t groups(int buffer) const { return buffers[buffer].width / buffers[buffer].group; }
    int32_t* sums(int buffer) const { return reinterpret_cast<int32_t*>(scale(buffer) + groups(buffer) * capacity); }

    // bf16 rows end in what a linear may read beyond their width: made finite by whoever writes such rows.
    void clear_padding(int buffer) const {
        const Buffer& b = buffers[buffer];
        if (b.kind != BufferKind::kBf16 || b.width % 32 == 0) return;
        const Share rows = mine(buffer);
        for (size_t row = rows.begin; row < rows.end; ++row) {
            uint16_t* values = at<uint16_t>(buffer) + row * stride(buffer);
            memset(values + b.width, 0, (stride(buffer) - b.width) * sizeof(uint16_t));
        }
    }

    // Scale and zero point of rows of codes on a static grid, computed from rows of codes: NaN where their scale is.
    void mark_rows(int in, int out, const InputGrid& g) const {
        const Share rows = mine(out);
        for (size_t row = rows.begin; row < rows.end; ++row) {
            const bool finite = scale(in)[row] == scale(in)[row];
            scale(out)[row] = finite ? g.static_scale : __builtin_nanf("");
            zero(out)[row] = g.static_zero_point;
        }
    }

    QuantizeRows quantizer(int in, int out, const InputGrid& g) const {
        return {.x = at<void>(in),
                .bf16 = buffers[in].kind == BufferKind::kBf16,
                .x_stride = stride(in),
                .k = buffers[in].width,
                .shift = g.shift,
                .multiplier = g.multiplier,
                .codes = at<uint8_t>(out),
                .code_stride = stride(out),
                .scale = scale(out),
                .zero_point = zero(out),
                .mode = g.mode,
                .static_scale = g.static_scale,
                .static_zero_point = g.static_zero_point,
                .code_min = g.code_min};
    }

    QuantizeGroups group_quantizer(int in, int out, const InputGrid& g) const {
        return {.x = at<void>(in),
                .bf16 = buffers[in].kind == BufferKind::kBf16,
                .x_stride = stride(in),
                .k = buffers[in].width,
                .group = buffers[out].group,
                .by_row = g.mode == QuantizeMode::kSymmetric,
                .shift = g.shift,
                .multiplier = g.multiplier,
                .codes = at<int8_t>(out),
                .code_stride = stride(out),
                .scale = scale(out),
                .sum = sums(out),
                .group_stride = groups(out)};
    }

    // Rows [begin, end) of f32 or bf16 values into codes, by rows or by groups.
    void quantize(int in, int out, const InputGrid& g, size_t begin, size_t end) const {
        if (buffers[out].kind == BufferKind::kGroups) {
            const QuantizeGroups to = group_quantizer(in, out, g);
            best(quantize_groups_variants, isa)(&to, begin, end);
        } else {
            const QuantizeRows to = quantizer(in, out, g);
            best(quantize_rows_variants, isa)(&to, begin, end);
        }
    }

    // One f32 row, which lies elsewhere, as row `row` of codes.
    void quantize_row(const float* values, int out, const InputGrid& g, size_t row) const {
        if (buffers[out].kind == BufferKind::kGroups) {
            QuantizeGroups one = group_quantizer(out, out, g);
            one.x = values - row * one.x_stride, one.bf16 = false;
            best(quantize_groups_variants, isa)(&one, row, row + 1);
        } else {
            QuantizeRows one = quantizer(out, out, g);
            one.x = values - row * one.x_stride, one.bf16 = false;
            best(quantize_rows_variants, isa)(&one, row, row + 1);
        }
    }
};

}  // namespace
