// Each kernel alone, over random shapes: operands exactly as large as the contracts say, results that do not depend on
// how the work is cut, and where the arithmetic is exact those of the scalar variant.
#include <math.h>

#include <vector>

#include "attention/contract.h"
#include "cpu.h"
#include "fill.h"
#include "gram/contract.h"
#include "linear_bf16/contract.h"
#include "linear_w8a8/contract.h"
#include "linear_wna16/contract.h"
#include "norm/contract.h"
#include "quantize_rows/contract.h"
#include "rows/contract.h"
#include "soak.h"

namespace {

void must_equal(const Exact& got, const Exact& want, const char* what, const char* detail) {
    if (!got.same(want)) fail(what, detail);
}

// Points in [0, total] at multiples of grain where a range is cut, from 0 to total.
std::vector<size_t> cuts(Random& random, size_t total, size_t grain) {
    std::vector<size_t> at = {0};
    while (at.back() < total) {
        const size_t next = at.back() + random.between(1, (total - at.back() + grain - 1) / grain) * grain;
        at.push_back(next < total ? next : total);
    }
    return at;
}

// compute(begin, end) over all parts of [0, total), the last first.
template <class Compute>
void in_parts(Random& random, size_t total, size_t grain, Compute compute) {
    const std::vector<size_t> at = cuts(random, total, grain);
    for (size_t part = at.size() - 1; part-- > 0;) compute(at[part], at[part + 1]);
}

// Now and then a row that is zero, tiny, huge or not finite.
void make_special(Random& random, Exact& values, size_t begin, size_t k) {
    if (!random.one_in(8)) return;
    static constexpr float factors[] = {0.0f, 1e-38f, 1e-45f, 1e38f, INFINITY, NAN};
    const float factor = factors[random.between(0, 5)];
    for (size_t i = 0; i < k; ++i) *values.at<float>(begin + i) *= factor;
}

void soak_quantize_rows(Random& random, int isa) {
    const size_t m = random.between(1, 40), k = random.between(1, random.one_in(8) ? 1100 : 200),
                 x_stride = k + random.between(0, 5), stride = code_stride(k);
    const bool bf16 = random.one_in(2), transformed = random.one_in(2);
    const QuantizeMode mode = QuantizeMode(random.between(0, 2));
    const bool symmetric = mode == kSymmetric || (mode == kStatic && random.one_in(2));
    const size_t count = (m - 1) * x_stride + k;
    Exact x = bf16 ? bf16s(random, count, 1.0f) : floats(random, count, 1.0f);
    for (size_t row = 0; row < m && !bf16; ++row) make_special(random, x, row * x_stride, k);
    const Transform transform(random, k, round_up(k, 64));
    Exact codes[2], scale[2], zero[2];
    QuantizeRows op{x.at<void>(),
                    bf16,
                    x_stride,
                    k,
                    transformed ? transform.shift.at<float>() : nullptr,
                    transformed ? transform.multiplier.at<float>() : nullptr,
                    nullptr,
                    stride,
                    nullptr,
                    nullptr,
                    mode,
                    0.01f,
                    symmetric ? 0 : int(random.between(0, 255)) - 128,
                    symmetric ? -127 : -128};
    for (int variant = 0; variant < 2; ++variant) {
        codes[variant] = room<uint8_t>(random, (m - 1) * stride + round_up(k, 64));
        scale[variant] = room<float>(random, m);
        zero[variant] = room<int32_t>(random, m);
        op.codes = codes[variant].at<uint8_t>();
        op.scale = scale[variant].at<float>();
        op.zero_point = zero[variant].at<int32_t>();
        const QuantizeRowsFn fn = quantize_rows_for(variant ? isa : kScalar);
        in_parts(random, m, 1, [&](size_t begin, size_t end) { fn(&op, begin, end); });
    }
    must_equal(codes[1], codes[0], "quantize_rows", "codes");
    must_equal(scale[1], scale[0], "quantize_rows", "scale");
    must_equal(zero[1], zero[0], "quantize_rows", "zero_point");
}

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

void soak_linear_w8a8(Random& random, LinearW8A8Fn fn) {
    const size_t m = random.between(1, 100), n = random.between(1, 200), k = random.between(1, 300),
                 k_padded = round_up(k, 64), stride = code_stride(k);
    const Int8Weight w(random, n, k);
    const Exact codes = bytes<uint8_t>(random, (round_up(m, 16) - 1) * stride + k_padded),
                scale = floats(random, m, 0.0f, 0.02f), zero = room<int32_t>(random, m);
    const Transform transform(random, n, round_up(n, 16));
    const bool transformed = random.one_in(2);
    const OutputGrid grid{transformed ? transform.shift.at<float>() : nullptr,
                          transformed ? transform.multiplier.at<float>() : nullptr, 0.02f, 3, -128};
    for (size_t i = 0; i < m; ++i) *zero.at<int32_t>(i) = int32_t(random.between(0, 255)) - 128;
    LinearW8A8 op{codes.at<uint8_t>(),
                  stride,
                  scale.at<float>(),
                  zero.at<int32_t>(),
                  w.weight.at<int8_t>(),
                  w.colsum.at<int32_t>(),
                  w.scale.at<float>(),
                  w.bias.at<float>(),
                  nullptr,
                  nullptr,
                  n + random.between(0, 40),
                  n,
                  k_padded,
                  random.one_in(2),
                  random.one_in(3),
                  nullptr};
    if (!op.bf16 && random.one_in(2)) op.grid = &grid;
    const auto compute = [fn](LinearW8A8& p, size_t row, size_t row_end, size_t block, size_t block_end) {
        fn(&p, row, row_end, block, block_end);
    };
    soak_cut(random, op, m, op.bf16 ? 2 : op.grid ? 1 : 4, compute, "linear_w8a8");

    op.gelu = op.bf16 = false;
    op.grid = nullptr;
    const bool sums = random.one_in(2);
    Exact y[2];
    for (int variant = 0; variant < 2; ++variant) {
        y[variant] = room<float>(random, (m - 1) * op.out_stride + n);
        op.y = y[variant].at<void>();
        op.sums = sums ? y[variant].at<int32_t>() : nullptr;
        (variant ? fn : linear_w8a8_scalar)(&op, 0, m, 0, round_up(n, 16) / 16);
    }
    must_equal(y[1], y[0], "linear_w8a8", sums ? "sums" : "values");
}

void soak_linear_bf16(Random& random, LinearBf16Fn fn) {
    const size_t m = random.between(1, 100), n = random.between(1, 200),
                 k = random.between(1, random.one_in(8) ? 600 : 200), k_padded = round_up(k, 32),
                 stride = k_padded + random.between(0, 20);
    const Bf16Weight w(random, n, k);
    Exact x = bf16s(random, (round_up(m, 16) - 1) * stride + k_padded, 1.0f);
    LinearBf16 op{x.at<uint16_t>(),
                  stride,
                  w.weight.at<uint16_t>(),
                  w.bias.at<float>(),
                  nullptr,
                  n + random.between(0, 40),
                  n,
                  k_padded,
                  random.one_in(2),
                  random.one_in(2)};
    const auto compute = [fn](LinearBf16& p, size_t row, size_t row_end, size_t block, size_t block_end) {
        fn(&p, row, row_end, block, block_end);
    };
    soak_cut(random, op, m, op.bf16 ? 2 : 4, compute, "linear_bf16");
}

void soak_linear_wna16(Random& random, int isa) {
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
    op.linear = {x.at<uint16_t>(),          stride, nullptr,  w.bias.at<float>(), nullptr,
                 n + random.between(0, 40), n,      k_padded, random.one_in(2),   random.one_in(2)};
    op.weight = w.weight;
    op.out_stride = op.linear.out_stride;
    op.n = n;
    const auto compute = [&](Both& p, size_t row, size_t row_end, size_t block, size_t block_end) {
        p.linear.y = p.y;
        linear_wna16(isa, &p, row, row_end, block, block_end, scratch.at<void>());
    };
    soak_cut(random, op, m, op.linear.bf16 ? 2 : 4, compute, "linear_wna16");
    Exact panel[2];
    for (int variant = 0; variant < 2; ++variant) {
        panel[variant] = room<uint16_t>(random, blocks * 16 * k_padded, 64);
        unpack_wna16_for(variant ? isa : kScalar)(&w.weight, 0, blocks, panel[variant].at<uint16_t>());
    }
    must_equal(panel[1], panel[0], "linear_wna16", "panel");
}

// Each operator on rows, by the variant and by the scalar one: the same bits.
void soak_rows(Random& random, int isa) {
    const size_t n = random.between(1, 300), half = random.between(1, 40), heads = random.between(1, 4);
    const Exact a = floats(random, n, 2.0f), b = floats(random, n, 1.0f), c = floats(random, n, 1.0f),
                a16 = bf16s(random, n, 2.0f), b16 = bf16s(random, n, 1.0f), codes = bytes<uint8_t>(random, n),
                q16 = bf16s(random, 2 * half * heads, 1.0f), cos = floats(random, half, 1.0f),
                sin = floats(random, half, 1.0f);
    const WordKind kind = WordKind(random.between(0, 2));
    const void* word = kind == WordKind::kF32    ? a.at<void>()
                       : kind == WordKind::kBf16 ? a16.at<void>()
                                                 : codes.at<void>();
    const EmbedRow row{word, kind, 0.1f, random.one_in(2) ? b.at<float>() : nullptr,
                       random.one_in(2) ? c.at<float>() : nullptr};
    const Function function = Function(random.between(0, 3));
    Exact out[2], out16[2], rotated[2];
    for (int variant = 0; variant < 2; ++variant) {
        const RowOperators& rows = rows_for(variant ? isa : kScalar);
        Exact &y = out[variant] = room<float>(random, 4 * n), &y16 = out16[variant] = room<uint16_t>(random, 4 * n);
        rows.embed(row, y.at<float>(), n);
        rows.widen(a16.at<uint16_t>(), y.at<float>(n), n);
        rows.transform(a.at<float>(), b.at<float>(), c.at<float>(), y.at<float>(2 * n), n);
        memcpy(y.at<float>(3 * n), a.at<float>(), a.bytes());
        rows.activate(y.at<float>(3 * n), function, n);
        rows.round(a.at<float>(), y16.at<uint16_t>(), n);
        rows.place(codes.at<uint8_t>(), 0.1f, 7, y16.at<uint16_t>(n), n);
        rows.gate(a16.at<uint16_t>(), b16.at<uint16_t>(), y16.at<uint16_t>(2 * n), n);
        memcpy(y16.at<uint16_t>(3 * n), a16.at<uint16_t>(), a16.bytes());
        rows.activate_bf16(y16.at<uint16_t>(3 * n), function, n);
        rotated[variant] = room<uint16_t>(random, 2 * half * heads);
        memcpy(rotated[variant].at<void>(), q16.at<void>(), q16.bytes());
        rows.rotate(rotated[variant].at<uint16_t>(), heads, 2 * half, cos.at<float>(), sin.at<float>());
    }
    must_equal(out[1], out[0], "rows", "f32");
    must_equal(out16[1], out16[0], "rows", "bf16");
    must_equal(rotated[1], rotated[0], "rows", "rotate");
}

void soak_norm(Random& random, int isa) {
    const size_t m = random.between(1, 30), n = random.between(1, 300), stride = n + random.between(0, 20),
                 count = (m - 1) * stride + n;
    const Exact x = floats(random, count, 1.0f, 0.5f), residual = floats(random, count, 1.0f),
                weight = floats(random, n, 0.1f, 1.0f), bias = floats(random, n, 0.1f);
    const bool kept = random.one_in(2);
    Norm op{x.at<float>(),
            random.one_in(2) ? residual.at<float>() : nullptr,
            nullptr,
            nullptr,
            weight.at<float>(),
            random.one_in(2) ? bias.at<float>() : nullptr,
            stride,
            n,
            1e-5f};
    Exact y[2], sum[2];
    for (int variant = 0; variant < 2; ++variant) {
        y[variant] = room<float>(random, count);
        sum[variant] = room<float>(random, count);
        op.y = y[variant].at<float>();
        op.sum = kept ? sum[variant].at<float>() : nullptr;
        const NormFn fn = norm_for(variant ? isa : kScalar);
        in_parts(random, m, 1, [&](size_t begin, size_t end) { fn(&op, begin, end); });
    }
    must_equal(y[1], y[0], "norm", "y");
    must_equal(sum[1], sum[0], "norm", "sum");
}

void soak_attention(Random& random, AttentionFn fn) {
    const size_t tokens = random.between(1, random.one_in(4) ? 200 : 50), heads = random.between(1, 3),
                 size = 8 * random.between(1, random.one_in(8) ? 32 : 10), width = heads * size,
                 stride = 3 * width + random.between(0, 9), out_stride = width + random.between(0, 9);
    Exact qkv = bf16s(random, (tokens - 1) * stride + 3 * width, 1.0f);
    const bool by_distance = random.one_in(2);
    const size_t bias_row = tokens + random.between(0, 9),
                 bias_stride = by_distance ? 2 * tokens - 1 : (tokens - 1) * bias_row + tokens;
    const Exact bias = floats(random, heads * bias_stride, 1.0f),
                scratch(random, attention_scratch_bytes(tokens, size), 64);
    if (random.one_in(8))
        *qkv.at<uint16_t>(random.between(0, tokens - 1) * stride) = random.one_in(2) ? 0x7f80 : 0x7fc0;
    const uint16_t* q = qkv.at<uint16_t>();
    Attention op{q,
                 q + width,
                 q + 2 * width,
                 stride,
                 nullptr,
                 out_stride,
                 tokens,
                 size,
                 0.3f,
                 random.one_in(2) ? bias.at<float>(by_distance ? tokens - 1 : 0) : nullptr,
                 bias_stride,
                 by_distance ? -1 : ptrdiff_t(bias_row),
                 random.one_in(2) ? kNoWindow : random.between(0, 64)};
    Exact out[2];
    for (Exact& each : out) each = room<uint16_t>(random, (tokens - 1) * out_stride + width);
    op.out = out[0].at<uint16_t>();
    fn(&op, 0, heads, 0, tokens, scratch.at<void>());
    op.out = out[1].at<uint16_t>();
    in_parts(random, heads, 1, [&](size_t head, size_t head_end) {
        in_parts(random, tokens, 1,
                 [&](size_t begin, size_t end) { fn(&op, head, head_end, begin, end, scratch.at<void>()); });
    });
    for (const Exact& each : out) {  // a NaN's sign is that of whichever operand came first
        for (size_t i = 0; i < (tokens - 1) * out_stride + width; ++i) {
            uint16_t& y = each.at<uint16_t>()[i];
            if (i % out_stride < width && (y & 0x7fff) > 0x7f80) y = 0x7fc0;
        }
    }
    must_equal(out[1], out[0], "attention", "cut otherwise");
}

void soak_gram(Random& random, const GramVariant& variant) {
    const size_t m = random.between(1, random.one_in(4) ? 1100 : 100),
                 k = random.between(1, random.one_in(4) ? 500 : 100), stride = k + random.between(0, 5),
                 blocks = 2 * gram_panels(k);
    const bool bf16 = random.one_in(2);
    const size_t count = (m - 1) * stride + k;
    const Exact x = bf16 ? bf16s(random, count, 1.0f) : floats(random, count, 1.0f);
    Exact gram[2], sums[2];
    for (int cut = 0; cut < 2; ++cut) {
        const Exact packed = room<uint16_t>(random, round_up(m, 32) * round_up(k, 32), 64);
        Exact low = floats(random, k, 0.0f), high = floats(random, k, 0.0f), magnitude = room<double>(random, k);
        gram[cut] = floats(random, k * k, 0.0f);
        sums[cut] = room<double>(random, k);
        memset(sums[cut].at<void>(), 0, sums[cut].bytes());
        memset(magnitude.at<void>(), 0, magnitude.bytes());
        const Gram op{x.at<void>(),
                      bf16,
                      stride,
                      m,
                      k,
                      packed.at<uint16_t>(),
                      low.at<float>(),
                      high.at<float>(),
                      sums[cut].at<double>(),
                      magnitude.at<double>(),
                      gram[cut].at<float>()};
        if (cut) {
            in_parts(random, blocks, 2, [&](size_t begin, size_t end) { variant.pack(&op, begin, end); });
            in_parts(random, gram_squares(k), 1, [&](size_t begin, size_t end) { variant.multiply(&op, begin, end); });
        } else {
            variant.pack(&op, 0, blocks);
            variant.multiply(&op, 0, gram_squares(k));
        }
    }
    must_equal(gram[1], gram[0], "gram", "cut otherwise");
    must_equal(sums[1], sums[0], "gram", "sums");
}

}  // namespace

void soak_kernels(Random& random, int isa) {
    soak_quantize_rows(random, isa);
    soak_linear_w8a8(random, linear_w8a8_for(isa));
    soak_linear_bf16(random, linear_bf16_for(isa));
    soak_linear_wna16(random, isa);
    soak_rows(random, isa);
    soak_norm(random, isa);
    soak_attention(random, attention_for(isa));
    // What this processor does not choose by itself, but could run.
    if (isa == kAvx2) soak_linear_w8a8(random, linear_w8a8_avx2);
    if (isa == kAvx512Vnni) {
        soak_linear_bf16(random, linear_bf16_avx512vnni);
        soak_attention(random, attention_avx512vnni);
        if (has_avx512_bf16()) soak_attention(random, attention_avx512bf16);
    }
    if (const GramVariant* variant = gram_for(isa)) soak_gram(random, *variant);
}
