// linear_w8a8 of float rows: quantize_rows, then linear_w8a8, in one parallel region. By rows when there are enough of
// them, else by columns.
#pragma once
#include "dispatch.h"
#include "linear_w8a8/count.h"
#include "sizes.h"
#include "threads/parallel.h"
#include "threads/share.h"

// x and y are f32, or both bf16, y [M, N] with its rows one after the other. See quantize_rows/contract.h for what is
// named as there, and contract.h for the weight.
struct QuantizeLinearW8A8 {
    const void* x;
    bool bf16;
    size_t x_stride;
    size_t m;
    size_t k;
    const float* shift;
    const float* multiplier;
    QuantizeMode mode;
    float static_scale;
    int32_t static_zero_point;
    int32_t code_min;
    const int8_t* weight;
    const int32_t* colsum;
    const float* scale_n;
    const float* bias;
    void* y;
    size_t n;
    Activation activation;
    uint8_t* scratch;  // [scratch_bytes(m, k)]: codes [M16, code_stride] u8, scale [M16] f32, zero_point [M16] i32
};

constexpr size_t kRowGrain = 32, kBlockGrain = 4;

inline size_t scratch_bytes(size_t m, size_t k) {
    return round_up(m, kBlock) * (code_stride(k) + sizeof(float) + sizeof(int32_t));
}

inline void quantize_linear_w8a8(Isa isa, int threads, const QuantizeLinearW8A8& op) {
    const size_t stride = code_stride(op.k), rows = round_up(op.m, kBlock), blocks = round_up(op.n, kBlock) / kBlock;
    float* scale_m = reinterpret_cast<float*>(op.scratch + rows * stride);
    int32_t* zero_m = reinterpret_cast<int32_t*>(scale_m + rows);
    const QuantizeRows quantize{.x = op.x,
                                .bf16 = op.bf16,
                                .x_stride = op.x_stride,
                                .k = op.k,
                                .shift = op.shift,
                                .multiplier = op.multiplier,
                                .codes = op.scratch,
                                .code_stride = stride,
                                .scale = scale_m,
                                .zero_point = zero_m,
                                .mode = op.mode,
                                .static_scale = op.static_scale,
                                .static_zero_point = op.static_zero_point,
                                .code_min = op.code_min};
    const LinearW8A8 multiply{.codes = op.scratch,
                              .code_stride = stride,
                              .scale_m = scale_m,
                              .zero_m = zero_m,
                              .weight = op.weight,
                              .colsum = op.colsum,
                              .scale_n = op.scale_n,
                              .bias = op.bias,
                              .y = op.y,
                              .out_stride = op.n,
                              .n = op.n,
                              .k_padded = round_up(op.k, kPadK),
                              .activation = op.activation,
                              .output = op.bf16 ? Output::kBf16 : Output::kF32};
    QuantizeRowsFn* quantize_fn = best(quantize_rows_variants, isa);
    LinearW8A8Fn* multiply_fn = best(linear_w8a8_variants, isa);
    ++integer_linears;
    threads = useful_threads(threads, op.m * op.n * op.k);
    const bool by_rows = op.m >= kRowGrain * size_t(threads);
    parallel(threads, [&](int index, int count) {
        const Share mine = share_of(op.m, by_rows ? kRowGrain : 1, index, count);
        quantize_fn(&quantize, mine.begin, mine.end);
        if (by_rows) return multiply_fn(&multiply, mine.begin, mine.end, 0, blocks);
        if (count > 1) barrier();
        const Share columns = share_of(blocks, kBlockGrain, index, count);
        multiply_fn(&multiply, 0, op.m, columns.begin, columns.end);
    });
}
