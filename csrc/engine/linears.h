// The linears on one group of sequences: see operators.h. Everything is internal to the file that includes it.
#pragma once
#include "dispatch.h"
#include "linear_w8a8/count.h"
#include "program.h"
#include "sizes.h"
#include "threads/share.h"
#include "work.h"

namespace {

// Rows per thread from which on a linear is cut by rows: fewer, and each thread reading all the weights costs more than
// the wait that a cut by columns brings.
constexpr size_t kRowsPerThread = 48;
// The same where each thread would unpack all the weights too, which takes as long as some 50 rows with AMX.
constexpr size_t kRowsPerUnpacking = 256;

size_t scratch_bytes(const MultiplyWna16& op, const std::vector<Buffer>&, size_t) {
    return wna16_scratch_bytes(op.weight.k);
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

void run(const MultiplyW4A8& op, const Work& w) {
    w.clear_padding(op.out);
    const LinearW4A8 linear{.codes = w.at<int8_t>(op.in),
                            .code_stride = w.stride(op.in),
                            .scale_m = w.scale(op.in),
                            .sum_m = w.sums(op.in),
                            .group_stride = w.groups(op.in),
                            .weight = op.weight,
                            .bias = op.bias,
                            .y = w.column(op.out, op.column),
                            .out_stride = w.stride(op.out),
                            .n = op.n,
                            .activation = op.activation,
                            .output = w.output(op.out)};
    if (w.index == 0 && w.first == 0) integer_linears += op.linears;
    cut_multiply(linear, best(linear_w4a8_variants, w.isa), w, op.in, op.n);
}

void run(const MultiplyWna16& op, const Work& w) {
    w.clear_padding(op.out);
    const LinearWna16 linear{.linear = linear_of(op, nullptr, w), .weight = op.weight};
    const auto multiply = [&](const LinearWna16* p, size_t row_begin, size_t row_end, size_t begin, size_t end) {
        linear_wna16(w.isa, p, row_begin, row_end, begin, end, w.scratch);
    };
    cut_multiply(linear, multiply, w, op.in, op.n, kRowsPerUnpacking);
}

}  // namespace
