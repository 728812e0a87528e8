// Linears of packed weights as operators of torch: torch.ops.bitwright.linear_*. See kernels/torch_ops.py for what they
// take. A shape that does not fit raises; addresses that are not aligned, too.
#include "dispatch.h"
#include "linear_w8a8/count.h"
#include "linear_w8a8/float_rows.h"
#include "threads/share.h"
#include "torch/register.h"
#include "torch/rows.h"

namespace {

// prepare(row_begin, row_end) makes the rows, multiply(row_begin, row_end, block_begin, block_end) the output: by rows
// if there are enough for each thread, else by columns.
template <class Prepare, class Multiply>
void run(int threads, size_t m, size_t n, size_t least_rows, const Prepare& prepare, const Multiply& multiply) {
    const size_t blocks = round_up(n, kBlock) / kBlock;
    const bool by_rows = m >= least_rows * size_t(threads);
    // A few rows are made faster than threads meet.
    const bool before = !by_rows && m <= 2 * size_t(threads);
    if (before) prepare(0, m);
    parallel(threads, [&](int index, int count) {
        if (!before) {
            const Share mine = share_of(m, by_rows ? kRowGrain : 1, index, count);
            prepare(mine.begin, mine.end);
            if (by_rows) return multiply(mine.begin, mine.end, 0, blocks);
            if (count > 1) barrier();
        }
        const Share columns = share_of(blocks, kBlockGrain, index, count);
        multiply(0, m, columns.begin, columns.end);
    });
}

Tensor output_of(const Rows& rows, size_t n) {
    return Tensor::empty({int64_t(rows.m), int64_t(n)}, rows.bf16 ? Type::kBFloat16 : Type::kFloat32);
}

Tensor rows_w8a8(const Tensor& x, const Tensor& weight, const Tensor& colsum, const Tensor& scale, const Tensor& bias,
                 const Optional& shift, const Optional& multiplier, int64_t n_given, int64_t mode, double static_scale,
                 int64_t static_zero_point, int64_t code_min, int64_t activation) {
    const Rows rows = rows_of(x);
    const size_t n = size_t(n_given), columns = round_up(n, kBlock), k_padded = round_up(rows.k, kPadK);
    if (n_given < 1 || rows.k < 1) refuse("a linear has inputs and outputs");
    if (bool(shift) != bool(multiplier)) refuse("an input transform has both a shift and a multiplier");
    Tensor y = output_of(rows, n);
    if (rows.m == 0) return y;
    const QuantizeLinearW8A8 op{
        .x = rows.x,
        .bf16 = rows.bf16,
        .x_stride = rows.stride,
        .m = rows.m,
        .k = rows.k,
        .shift = constant<float>(shift, Type::kFloat32, k_padded, "shift: float32, K padded to 64"),
        .multiplier = constant<float>(multiplier, Type::kFloat32, k_padded, "multiplier: float32, K padded to 64"),
        .mode = QuantizeMode(mode),
        .static_scale = float(static_scale),
        .static_zero_point = int32_t(static_zero_point),
        .code_min = int32_t(code_min),
        .weight = constant<int8_t>(weight, Type::kInt8, columns * k_padded, "weight: int8, packed, of N and K"),
        .colsum = constant<int32_t>(colsum, Type::kInt32, columns, "colsum: int32, N padded to 16"),
        .scale_n = constant<float>(scale, Type::kFloat32, columns, "scale: float32, N padded to 16"),
        .bias = constant<float>(bias, Type::kFloat32, columns, "bias: float32, N padded to 16"),
        .y = y.data<void>(),
        .n = n,
        .activation = Activation(activation),
        .scratch = reinterpret_cast<uint8_t*>(scratch(scratch_bytes(rows.m, rows.k)))};
    quantize_linear_w8a8(active_isa(), torch_abi::threads(), op);
    return y;
}

// The weight of linear_w4a8 and linear_w4a16.
Wna8 wna8_of(const Tensor& codes, const Tensor& scale, const Optional& zero, const Optional& minimum,
             const int8_t* levels, size_t n, size_t k, int64_t bits, int64_t group_given, int64_t per_given) {
    const size_t columns = round_up(n, kBlock), group = size_t(group_given), per = size_t(per_given);
    if (group_given < 8 || per_given < 1 || bits < 2 || bits > 4 || k % (group * per)) refuse("groups that divide K");
    const size_t held = columns * (k / group / per);
    const Type scales = scale.type();
    if (scales != Type::kBFloat16 && scales != Type::kFloat32) refuse("scale: bfloat16 or float32");
    return {.codes = constant<uint8_t>(codes, Type::kUint8, columns * k * size_t(bits) / 8,
                                       "codes: uint8, packed, of N, K and bits"),
            .bits = int(bits),
            .levels = levels,
            .scale = constant<void>(scale, scales, held, "scale: (N/16, G, 16)"),
            .bf16_scale = scales == Type::kBFloat16,
            .zero = constant<uint8_t>(zero, Type::kUint8, held, "zero: uint8 (N/16, G, 16)"),
            .minimum = constant<void>(minimum, scales, held, "minimum: as scale"),
            .k = k,
            .group = group,
            .per = per};
}

Tensor rows_wna8(const Tensor& x, const Tensor& codes, const Tensor& scale, const Optional& zero,
                 const Optional& minimum, const Optional& levels, const Tensor& bias, const Optional& shift,
                 const Optional& multiplier, int64_t n_given, int64_t bits, int64_t group, int64_t per) {
    const Rows rows = rows_of(x);
    const size_t n = size_t(n_given);
    if (n_given < 1 || rows.k < 1) refuse("a linear has inputs and outputs");
    if (bool(shift) != bool(multiplier)) refuse("an input transform has both a shift and a multiplier");
    const Wna8 weight =
        wna8_of(codes, scale, zero, minimum, constant<int8_t>(levels, Type::kInt8, 16, "levels: int8 (16)"), n, rows.k,
                bits, group, per);
    Tensor y = output_of(rows, n);
    if (rows.m == 0) return y;
    const size_t stride = code_stride(rows.k), groups = rows.k / weight.group;
    char* memory = scratch(rows.m * stride + rows.m * groups * (sizeof(float) + sizeof(int32_t)));
    int8_t* made = reinterpret_cast<int8_t*>(memory);
    float* scale_m = reinterpret_cast<float*>(memory + rows.m * stride);
    int32_t* sum_m = reinterpret_cast<int32_t*>(scale_m + rows.m * groups);
    const QuantizeGroups quantize{
        .x = rows.x,
        .bf16 = rows.bf16,
        .x_stride = rows.stride,
        .k = rows.k,
        .group = weight.group,
        .by_row = false,
        .shift = constant<float>(shift, Type::kFloat32, rows.k, "shift: float32 (K)"),
        .multiplier = constant<float>(multiplier, Type::kFloat32, rows.k, "multiplier: float32 (K)"),
        .codes = made,
        .code_stride = stride,
        .scale = scale_m,
        .sum = sum_m,
        .group_stride = groups};
    const LinearW4A8 linear{
        .codes = made,
        .code_stride = stride,
        .scale_m = scale_m,
        .sum_m = sum_m,
        .group_stride = groups,
        .weight = weight,
        .bias = constant<float>(bias, Type::kFloat32, round_up(n, kBlock), "bias: float32, N padded to 16"),
        .y = y.data<void>(),
        .out_stride = n,
        .n = n,
        .activation = Activation::kNone,
        .output = rows.bf16 ? Output::kBf16 : Output::kF32};
    QuantizeGroupsFn* quantize_fn = best(quantize_groups_variants, active_isa());
    LinearW4A8Fn* multiply_fn = best(linear_w4a8_variants, active_isa());
    ++integer_linears;
    run(
        threads_for(rows.m, n, rows.k, round_up(n, kBlock) * rows.k * size_t(bits) / 8), rows.m, n, 48,
        [&](size_t begin, size_t end) { quantize_fn(&quantize, begin, end); },
        [&](size_t begin, size_t end, size_t first, size_t last) { multiply_fn(&linear, begin, end, first, last); });
    return y;
}

Tensor rows_wna16(const Tensor& x, const Tensor& codes, const Tensor& scale, const Optional& zero,
                  const Optional& minimum, const Optional& levels, const Tensor& bias, int64_t n_given, int64_t bits,
                  int64_t group, int64_t per) {
    const Rows rows = rows_of(x);
    const size_t n = size_t(n_given);
    if (n_given < 1 || rows.k < 1) refuse("a linear has inputs and outputs");
    const Wna8 weight = wna8_of(codes, scale, zero, minimum, nullptr, n, rows.k, bits, group, per);
    Tensor y = output_of(rows, n);
    if (rows.m == 0) return y;
    const size_t stride = round_up(rows.k, 32), groups = rows.k / weight.group;
    char* memory = scratch(rows.m * (stride * sizeof(uint16_t) + groups * sizeof(float)));
    uint16_t* made = reinterpret_cast<uint16_t*>(memory);
    float* sum_m = reinterpret_cast<float*>(memory + rows.m * stride * sizeof(uint16_t));
    const PrepareW4A16 prepare{.x = rows.x,
                               .bf16 = rows.bf16,
                               .x_stride = rows.stride,
                               .k = rows.k,
                               .group = weight.group,
                               .rows = made,
                               .row_stride = stride,
                               .sum = sum_m,
                               .group_stride = groups};
    const LinearW4A16 linear{
        .rows = made,
        .row_stride = stride,
        .sum_m = sum_m,
        .group_stride = groups,
        .weight = weight,
        .levels = constant<uint16_t>(levels, Type::kBFloat16, size_t(1) << bits, "levels: bfloat16 (2^bits)"),
        .bias = constant<float>(bias, Type::kFloat32, round_up(n, kBlock), "bias: float32, N padded to 16"),
        .y = y.data<void>(),
        .out_stride = n,
        .n = n,
        .activation = Activation::kNone,
        .output = rows.bf16 ? Output::kBf16 : Output::kF32};
    // One row is faster without tiles, which have other bits.
    const Isa isa = rows.m == 1 ? std::min(active_isa(), Isa::kAvx512Vnni) : active_isa();
    const W4A16Kernels kernels = best(linear_w4a16_variants, isa);
    ++integer_linears;
    run(
        threads_for(rows.m, n, rows.k, round_up(n, kBlock) * rows.k * size_t(bits) / 8), rows.m, n, 48,
        [&](size_t begin, size_t end) { kernels.prepare(&prepare, begin, end); },
        [&](size_t begin, size_t end, size_t first, size_t last) {
            kernels.multiply(&linear, begin, end, first, last);
        });
    return y;
}

}  // namespace

void register_linears() {
    torch_abi::define<rows_w8a8>(
        "linear_w8a8(Tensor x, Tensor weight, Tensor colsum, Tensor scale, Tensor bias, Tensor? shift, "
        "Tensor? multiplier, int n, int mode, float static_scale, int static_zero_point, int code_min, "
        "int activation) -> Tensor");
    torch_abi::define<rows_wna8>(
        "linear_wna8(Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? minimum, Tensor? levels, Tensor bias, "
        "Tensor? shift, Tensor? multiplier, int n, int bits, int group, int per) -> Tensor");
    torch_abi::define<rows_wna16>(
        "linear_wna16(Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? minimum, Tensor? levels, "
        "Tensor bias, int n, int bits, int group, int per) -> Tensor");
}
