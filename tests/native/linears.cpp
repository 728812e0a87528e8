// The linears alone, over random shapes: see kernels.cpp.
#include "linears.h"

#include "fill.h"
#include "parts.h"

namespace {

Activation random_activation(Random& random) { return random.one_in(2) ? Activation::kGelu : Activation::kNone; }

size_t value_bytes(Output output) { return output == Output::kCodes ? 1 : output == Output::kBf16 ? 2 : 4; }

// A linear's output computed at once, and in parts by rows and by column blocks, the parts in two buffers of one size.
template <class Op, class Fn>
void soak_cut(Random& random, Op& op, size_t m, size_t element, Fn fn, const char* what) {
    Exact y[2];
    for (Exact& each : y) each = Exact(random, ((m - 1) * op.out_stride + op.n) * element, element);
    const auto set = [&](Exact& to) { op.y = to.template at<void>(); };
    set(y[0]);
    fn(op, 0, m, 0, round_up(op.n, 16) / 16);
    set(y[1]);
    in_parts(random, m, 16, [&](size_t row, size_t row_end) {
        in_parts(random, round_up(op.n, 16) / 16, 1,
                 [&](size_t block, size_t block_end) { fn(op, row, row_end, block, block_end); });
    });
    must_equal(y[1], y[0], what, "cut otherwise");
}

}  // namespace

void soak_linear_w8a8(Random& random, LinearW8A8Fn* fn) {
    const size_t m = random.between(1, 100), n = random.between(1, 200), k = random.between(1, 300),
                 k_padded = round_up(k, 64), stride = code_stride(k);
    const Int8Weight w(random, n, k);
    const Exact codes = bytes<uint8_t>(random, (round_up(m, 16) - 1) * stride + k_padded),
                scale = floats(random, m, 0.0f, 0.02f), zero = room<int32_t>(random, m);
    const Transform transform(random, n, round_up(n, 16));
    const bool transformed = random.one_in(2);
    for (size_t i = 0; i < m; ++i) *zero.at<int32_t>(i) = int32_t(random.between(0, 255)) - 128;
    static constexpr Output outputs[] = {Output::kF32, Output::kBf16, Output::kCodes};
    LinearW8A8 op{.codes = codes.at<uint8_t>(),
                  .code_stride = stride,
                  .scale_m = scale.at<float>(),
                  .zero_m = zero.at<int32_t>(),
                  .weight = w.weight.at<int8_t>(),
                  .colsum = w.colsum.at<int32_t>(),
                  .scale_n = w.scale.at<float>(),
                  .bias = w.bias.at<float>(),
                  .y = nullptr,
                  .out_stride = n + random.between(0, 40),
                  .n = n,
                  .k_padded = k_padded,
                  .activation = random_activation(random),
                  .output = outputs[random.between(0, 2)],
                  .grid = {transformed ? transform.shift.at<float>() : nullptr,
                           transformed ? transform.multiplier.at<float>() : nullptr, 0.02f, 3, -128}};
    const auto compute = [fn](LinearW8A8& p, size_t row, size_t row_end, size_t block, size_t block_end) {
        fn(&p, row, row_end, block, block_end);
    };
    soak_cut(random, op, m, value_bytes(op.output), compute, "linear_w8a8");

    op.activation = Activation::kNone;
    op.output = random.one_in(2) ? Output::kSums : Output::kF32;
    Exact y[2];
    for (int variant = 0; variant < 2; ++variant) {
        y[variant] = room<float>(random, (m - 1) * op.out_stride + n);
        op.y = y[variant].at<void>();
        (variant ? fn : linear_w8a8_scalar)(&op, 0, m, 0, round_up(n, 16) / 16);
    }
    must_equal(y[1], y[0], "linear_w8a8", op.output == Output::kSums ? "sums" : "values");
}

void soak_linear_w4a8(Random& random, LinearW4A8Fn* fn) {
    const size_t m = random.between(1, random.one_in(2) ? 10 : 60), n = random.between(1, 200),
                 per = random.between(1, 3), groups = per * random.between(1, 4), group = 8 * random.between(1, 16),
                 k = groups * group, stride = k + random.between(0, 20), group_stride = groups + random.between(0, 3);
    const Wna8Weight w(random, n, groups, group, per, random.one_in(2), 1);
    const Exact codes = bytes<int8_t>(random, (m - 1) * stride + k, 1),
                scale = floats(random, (m - 1) * group_stride + groups, 0.0f, 0.02f),
                sum = room<int32_t>(random, (m - 1) * group_stride + groups);
    for (size_t i = 0; i < (m - 1) * stride + k; ++i) {
        if (*codes.at<int8_t>(i) == -128) *codes.at<int8_t>(i) = 127;
    }
    for (size_t row = 0; row < m; ++row) {
        for (size_t g = 0; g < groups; ++g) {
            int32_t& total = *sum.at<int32_t>(row * group_stride + g) = 0;
            for (size_t i = 0; i < group; ++i) total += *codes.at<int8_t>(row * stride + g * group + i);
        }
    }
    LinearW4A8 op{.codes = codes.at<int8_t>(),
                  .code_stride = stride,
                  .scale_m = scale.at<float>(),
                  .sum_m = sum.at<int32_t>(),
                  .group_stride = group_stride,
                  .weight = w.weight,
                  .bias = w.bias.at<float>(),
                  .y = nullptr,
                  .out_stride = n + random.between(0, 40),
                  .n = n,
                  .activation = random_activation(random),
                  .output = random.one_in(2) ? Output::kBf16 : Output::kF32};
    const auto compute = [fn](LinearW4A8& p, size_t row, size_t row_end, size_t block, size_t block_end) {
        fn(&p, row, row_end, block, block_end);
    };
    soak_cut(random, op, m, value_bytes(op.output), compute, "linear_w4a8");

    op.activation = Activation::kNone;
    Exact y[2];
    for (int variant = 0; variant < 2; ++variant) {
        const size_t element = value_bytes(op.output);
        y[variant] = Exact(random, ((m - 1) * op.out_stride + n) * element, element);
        op.y = y[variant].at<void>();
        (variant ? fn : linear_w4a8_scalar)(&op, 0, m, 0, round_up(n, 16) / 16);
    }
    must_equal(y[1], y[0], "linear_w4a8", "values");
}

void soak_linear_w4a16(Random& random, const W4A16Kernels& kernels) {
    const size_t m = random.between(1, random.one_in(2) ? 10 : 60), n = random.between(1, 200),
                 per = random.between(1, 3), groups = per * random.between(1, 4), group = 8 * random.between(1, 16),
                 k = groups * group, stride = k + random.between(0, 20), group_stride = groups + random.between(0, 3);
    const Wna8Weight w(random, n, groups, group, per, random.one_in(2), 2);
    const bool bf16 = random.one_in(2);
    const Exact x = bf16 ? bf16s(random, (m - 1) * stride + k, 1.0f) : floats(random, (m - 1) * stride + k, 1.0f),
                levels = bf16s(random, size_t(1) << w.bits, 4.0f);
    Exact rows[2], sums[2];
    for (int cut = 0; cut < 2; ++cut) {
        rows[cut] = room<uint16_t>(random, (m - 1) * stride + k);
        sums[cut] = room<float>(random, (m - 1) * group_stride + groups);
        const PrepareW4A16 op{.x = x.at<void>(),
                              .bf16 = bf16,
                              .x_stride = stride,
                              .k = k,
                              .group = group,
                              .rows = rows[cut].at<uint16_t>(),
                              .row_stride = stride,
                              .sum = sums[cut].at<float>(),
                              .group_stride = group_stride};
        if (cut) {
            in_parts(random, m, 1, [&](size_t begin, size_t end) { kernels.prepare(&op, begin, end); });
        } else {
            prepare_w4a16_scalar(&op, 0, m);
        }
    }
    must_equal(rows[1], rows[0], "linear_w4a16", "rows");
    must_equal(sums[1], sums[0], "linear_w4a16", "sums");
    LinearW4A16 op{.rows = rows[0].at<uint16_t>(),
                   .row_stride = stride,
                   .sum_m = sums[0].at<float>(),
                   .group_stride = group_stride,
                   .weight = w.weight,
                   .levels = nullptr,
                   .bias = w.bias.at<float>(),
                   .y = nullptr,
                   .out_stride = n + random.between(0, 40),
                   .n = n,
                   .activation = random_activation(random),
                   .output = random.one_in(2) ? Output::kBf16 : Output::kF32};
    if (!w.weight.zero && !w.weight.minimum && random.one_in(2)) op.levels = levels.at<uint16_t>();
    const auto compute = [&](LinearW4A16& p, size_t row, size_t row_end, size_t block, size_t block_end) {
        kernels.multiply(&p, row, row_end, block, block_end);
    };
    soak_cut(random, op, m, value_bytes(op.output), compute, "linear_w4a16");
}

void soak_linear_bf16(Random& random, LinearBf16Fn* fn) {
    const size_t m = random.between(1, 100), n = random.between(1, 200),
                 k = random.between(1, random.one_in(8) ? 600 : 200), k_padded = round_up(k, 32),
                 stride = k_padded + random.between(0, 20);
    const Bf16Weight w(random, n, k);
    Exact x = bf16s(random, (round_up(m, 16) - 1) * stride + k_padded, 1.0f);
    LinearBf16 op{.x = x.at<uint16_t>(),
                  .x_stride = stride,
                  .weight = w.weight.at<uint16_t>(),
                  .bias = w.bias.at<float>(),
                  .y = nullptr,
                  .out_stride = n + random.between(0, 40),
                  .n = n,
                  .k_padded = k_padded,
                  .activation = random_activation(random),
                  .output = random.one_in(2) ? Output::kBf16 : Output::kF32};
    const auto compute = [fn](LinearBf16& p, size_t row, size_t row_end, size_t block, size_t block_end) {
        fn(&p, row, row_end, block, block_end);
    };
    soak_cut(random, op, m, value_bytes(op.output), compute, "linear_bf16");
}

void soak_linear_wna16(Random& random, Isa isa) {
    const size_t m = random.between(1, 100), n = random.between(1, 200),
                 k = random.one_in(2) ? 8 * random.between(1, 60) : random.between(1, 200), k_padded = round_up(k, 32),
                 stride = k_padded + random.between(0, 20), blocks = round_up(n, 16) / 16;
    const WnaWeight w(random, n, k, random.one_in(2), random_group(random, k));
    const Exact x = bf16s(random, (round_up(m, 16) - 1) * stride + k_padded, 1.0f),
                scratch(random, wna16_scratch_bytes(k), 64);
    struct Both : LinearWna16 {  // where soak_cut looks for a linear's output
        size_t out_stride, n;
        void* y;
    };
    Both op{};
    op.linear = {.x = x.at<uint16_t>(),
                 .x_stride = stride,
                 .weight = nullptr,
                 .bias = w.bias.at<float>(),
                 .y = nullptr,
                 .out_stride = n + random.between(0, 40),
                 .n = n,
                 .k_padded = k_padded,
                 .activation = random_activation(random),
                 .output = random.one_in(2) ? Output::kBf16 : Output::kF32};
    op.weight = w.weight;
    op.out_stride = op.linear.out_stride;
    op.n = n;
    const auto compute = [&](Both& p, size_t row, size_t row_end, size_t block, size_t block_end) {
        p.linear.y = p.y;
        linear_wna16(isa, &p, row, row_end, block, block_end, scratch.at<void>());
    };
    soak_cut(random, op, m, value_bytes(op.linear.output), compute, "linear_wna16");
    Exact panel[2];
    for (int variant = 0; variant < 2; ++variant) {
        panel[variant] = room<uint16_t>(random, blocks * 16 * k_padded, 64);
        (variant ? best(linear_wna16_variants, isa) : unpack_wna16_scalar)(&w.weight, 0, blocks,
                                                                           panel[variant].at<uint16_t>());
    }
    must_equal(panel[1], panel[0], "linear_wna16", "panel");
}
