// Each kernel alone, over random shapes: operands exactly as large as the contracts say, results that do not depend on
// how the work is cut, and where the arithmetic is exact those of the scalar variant.
#include <math.h>

#include <vector>

#include "dispatch.h"
#include "fill.h"
#include "linears.h"
#include "parts.h"
#include "soak.h"

namespace {

// Now and then a row that is zero, tiny, huge or not finite.
void make_special(Random& random, Exact& values, size_t begin, size_t k) {
    if (!random.one_in(8)) return;
    static constexpr float factors[] = {0.0f, 1e-38f, 1e-45f, 1e38f, INFINITY, NAN};
    const float factor = factors[random.between(0, 5)];
    for (size_t i = 0; i < k; ++i) *values.at<float>(begin + i) *= factor;
}

void soak_quantize_rows(Random& random, QuantizeRowsFn* fn) {
    const size_t m = random.between(1, 40), k = random.between(1, random.one_in(8) ? 1100 : 200),
                 x_stride = k + random.between(0, 5), stride = code_stride(k);
    const bool bf16 = random.one_in(2), transformed = random.one_in(2);
    const QuantizeMode mode = QuantizeMode(random.between(0, 2));
    const bool symmetric = mode == QuantizeMode::kSymmetric || (mode == QuantizeMode::kStatic && random.one_in(2));
    const size_t count = (m - 1) * x_stride + k;
    Exact x = bf16 ? bf16s(random, count, 1.0f) : floats(random, count, 1.0f);
    for (size_t row = 0; row < m && !bf16; ++row) make_special(random, x, row * x_stride, k);
    const Transform transform(random, k, round_up(k, 64));
    Exact codes[2], scale[2], zero[2];
    QuantizeRows op{.x = x.at<void>(),
                    .bf16 = bf16,
                    .x_stride = x_stride,
                    .k = k,
                    .shift = transformed ? transform.shift.at<float>() : nullptr,
                    .multiplier = transformed ? transform.multiplier.at<float>() : nullptr,
                    .codes = nullptr,
                    .code_stride = stride,
                    .scale = nullptr,
                    .zero_point = nullptr,
                    .mode = mode,
                    .static_scale = 0.01f,
                    .static_zero_point = symmetric ? 0 : int(random.between(0, 255)) - 128,
                    .code_min = symmetric ? -127 : -128};
    for (int variant = 0; variant < 2; ++variant) {
        codes[variant] = room<uint8_t>(random, (m - 1) * stride + round_up(k, 64));
        scale[variant] = room<float>(random, m);
        zero[variant] = room<int32_t>(random, m);
        op.codes = codes[variant].at<uint8_t>();
        op.scale = scale[variant].at<float>();
        op.zero_point = zero[variant].at<int32_t>();
        QuantizeRowsFn* each = variant ? fn : quantize_rows_scalar;
        in_parts(random, m, 1, [&](size_t begin, size_t end) { each(&op, begin, end); });
    }
    must_equal(codes[1], codes[0], "quantize_rows", "codes");
    must_equal(scale[1], scale[0], "quantize_rows", "scale");
    must_equal(zero[1], zero[0], "quantize_rows", "zero_point");
}

void soak_quantize_groups(Random& random, QuantizeGroupsFn* fn) {
    const size_t m = random.between(1, 20), group = 8 * random.between(1, 16), groups = random.between(1, 8),
                 k = groups * group, x_stride = k + random.between(0, 5), stride = code_stride(k),
                 group_stride = groups + random.between(0, 3);
    const bool bf16 = random.one_in(2), transformed = random.one_in(2);
    const size_t count = (m - 1) * x_stride + k;
    Exact x = bf16 ? bf16s(random, count, 1.0f) : floats(random, count, 1.0f);
    for (size_t row = 0; row < m && !bf16; ++row) {
        make_special(random, x, row * x_stride + random.between(0, groups - 1) * group, group);
    }
    const Transform transform(random, k, k);
    Exact codes[2], scale[2], sum[2];
    QuantizeGroups op{.x = x.at<void>(),
                      .bf16 = bf16,
                      .x_stride = x_stride,
                      .k = k,
                      .group = group,
                      .by_row = random.one_in(2),
                      .shift = transformed ? transform.shift.at<float>() : nullptr,
                      .multiplier = transformed ? transform.multiplier.at<float>() : nullptr,
                      .codes = nullptr,
                      .code_stride = stride,
                      .scale = nullptr,
                      .sum = nullptr,
                      .group_stride = group_stride};
    for (int variant = 0; variant < 2; ++variant) {
        codes[variant] = room<int8_t>(random, (m - 1) * stride + round_up(k, 64));
        scale[variant] = room<float>(random, (m - 1) * group_stride + groups);
        sum[variant] = room<int32_t>(random, (m - 1) * group_stride + groups);
        op.codes = codes[variant].at<int8_t>();
        op.scale = scale[variant].at<float>();
        op.sum = sum[variant].at<int32_t>();
        QuantizeGroupsFn* each = variant ? fn : quantize_groups_scalar;
        in_parts(random, m, 1, [&](size_t begin, size_t end) { each(&op, begin, end); });
    }
    must_equal(codes[1], codes[0], "quantize_groups", "codes");
    must_equal(scale[1], scale[0], "quantize_groups", "scale");
    must_equal(sum[1], sum[0], "quantize_groups", "sum");
}

// Each operator on rows, by the variant and by the scalar one: the same bits.
void soak_rows(Random& random, const RowOperators& rows_of_variant) {
    const size_t n = random.between(1, 300), half = random.between(1, 40), heads = random.between(1, 4),
                 turned = random.between(1, half);
    const Exact a = floats(random, n, 2.0f), b = floats(random, n, 1.0f), c = floats(random, n, 1.0f),
                a16 = bf16s(random, n, 2.0f), b16 = bf16s(random, n, 1.0f), codes = bytes<uint8_t>(random, n),
                q16 = bf16s(random, 2 * half * heads, 1.0f), cos = floats(random, half, 1.0f),
                sin = floats(random, half, 1.0f);
    const size_t taps = random.between(1, 8);
    const Exact weight = floats(random, taps * n, 1.0f), earlier = bf16s(random, taps * n, 1.0f);
    std::vector<const uint16_t*> before;
    for (size_t tap = 0; tap < taps; ++tap) {
        before.push_back(random.one_in(4) ? nullptr : earlier.at<uint16_t>(tap * n));
    }
    const WordKind kind = WordKind(random.between(0, 2));
    const void* word = kind == WordKind::kF32    ? a.at<void>()
                       : kind == WordKind::kBf16 ? a16.at<void>()
                                                 : codes.at<void>();
    const EmbedRow row{.word = word,
                       .kind = kind,
                       .scale = 0.1f,
                       .position = random.one_in(2) ? b.at<float>() : nullptr,
                       .type = random.one_in(2) ? c.at<float>() : nullptr,
                       .factor = random.one_in(2) ? 3.5f : 1.0f};
    const Function function = Function(random.between(0, 5));
    Exact out[2], out16[2], rotated[2], convolved[2];
    for (int variant = 0; variant < 2; ++variant) {
        const RowOperators& rows = variant ? rows_of_variant : kRowsScalar;
        Exact &y = out[variant] = room<float>(random, 5 * n), &y16 = out16[variant] = room<uint16_t>(random, 3 * n);
        rows.embed(row, y.at<float>(), n);
        rows.widen(a16.at<uint16_t>(), y.at<float>(n), n);
        rows.transform(a.at<float>(), b.at<float>(), c.at<float>(), y.at<float>(2 * n), n);
        memcpy(y.at<float>(3 * n), a.at<float>(), a.bytes());
        rows.activate(y.at<float>(3 * n), function, n);
        rows.round(a.at<float>(), y16.at<uint16_t>(), n);
        rows.place(codes.at<uint8_t>(), 0.1f, 7, y16.at<uint16_t>(n), n);
        rows.gate(a16.at<uint16_t>(), b16.at<uint16_t>(), function, y.at<float>(4 * n), n);
        memcpy(y16.at<uint16_t>(2 * n), a16.at<uint16_t>(), a16.bytes());
        rows.activate_bf16(y16.at<uint16_t>(2 * n), function, n);
        rotated[variant] = room<uint16_t>(random, 2 * half * heads);
        memcpy(rotated[variant].at<void>(), q16.at<void>(), q16.bytes());
        rows.rotate(rotated[variant].at<uint16_t>(), heads, 2 * half, 2 * turned, cos.at<float>(), sin.at<float>());
        convolved[variant] = room<uint16_t>(random, 2 * n);
        rows.convolve({.b = a16.at<uint16_t>(),
                       .c = b16.at<uint16_t>(),
                       .x = earlier.at<uint16_t>(),
                       .taps = taps,
                       .weight = weight.at<float>(),
                       .weight_stride = n,
                       .bias = row.position,
                       .before = before.data(),
                       .product = convolved[variant].at<uint16_t>(),
                       .y = convolved[variant].at<uint16_t>(n)},
                      n);
    }
    must_equal(convolved[1], convolved[0], "rows", "convolve");
    must_equal(out[1], out[0], "rows", "f32");
    must_equal(out16[1], out16[0], "rows", "bf16");
    must_equal(rotated[1], rotated[0], "rows", "rotate");
}

void soak_norm(Random& random, NormFn* fn) {
    const size_t m = random.between(1, 30), n = random.between(1, 300), stride = n + random.between(0, 20),
                 count = (m - 1) * stride + n;
    const Exact x = floats(random, count, 1.0f, 0.5f), residual = floats(random, count, 1.0f),
                weight = floats(random, n, 0.1f, 1.0f), bias = floats(random, n, 0.1f);
    const bool kept = random.one_in(2);
    Norm op{.x = x.at<float>(),
            .residual = random.one_in(2) ? residual.at<float>() : nullptr,
            .sum = nullptr,
            .y = nullptr,
            .weight = weight.at<float>(),
            .bias = random.one_in(2) ? bias.at<float>() : nullptr,
            .stride = stride,
            .n = n,
            .eps = 1e-5f,
            .centred = random.one_in(2)};
    Exact y[2], sum[2];
    for (int variant = 0; variant < 2; ++variant) {
        y[variant] = room<float>(random, count);
        sum[variant] = room<float>(random, count);
        op.y = y[variant].at<float>();
        op.sum = kept ? sum[variant].at<float>() : nullptr;
        NormFn* each = variant ? fn : norm_scalar;
        in_parts(random, m, 1, [&](size_t begin, size_t end) { each(&op, begin, end); });
    }
    must_equal(y[1], y[0], "norm", "y");
    must_equal(sum[1], sum[0], "norm", "sum");
}

// The same NaN in all rows of bf16: its sign is that of whichever operand came first.
void one_nan(const Exact& rows, size_t stride, size_t width) {
    for (size_t i = 0; i < rows.bytes() / sizeof(uint16_t); ++i) {
        uint16_t& y = *rows.at<uint16_t>(i);
        if (i % stride < width && (y & 0x7fff) > 0x7f80) y = 0x7fc0;
    }
}

void soak_attention(Random& random, AttentionFn* fn, size_t scratch_bytes(size_t tokens, size_t head_size)) {
    const size_t tokens = random.between(1, random.one_in(4) ? 200 : 50), heads = random.between(1, 3),
                 size = 8 * random.between(1, random.one_in(8) ? 32 : 10), width = heads * size,
                 stride = 3 * width + random.between(0, 9), out_stride = width + random.between(0, 9);
    Exact qkv = bf16s(random, (tokens - 1) * stride + 3 * width, 1.0f);
    const bool by_distance = random.one_in(2);
    const size_t bias_row = tokens + random.between(0, 9),
                 bias_stride = by_distance ? 2 * tokens - 1 : (tokens - 1) * bias_row + tokens;
    const Exact bias = floats(random, heads * bias_stride, 1.0f), scratch(random, scratch_bytes(tokens, size), 64);
    if (random.one_in(8))
        *qkv.at<uint16_t>(random.between(0, tokens - 1) * stride) = random.one_in(2) ? 0x7f80 : 0x7fc0;
    const uint16_t* q = qkv.at<uint16_t>();
    Attention op{.q = q,
                 .k = q + width,
                 .v = q + 2 * width,
                 .stride = stride,
                 .out = nullptr,
                 .out_stride = out_stride,
                 .tokens = tokens,
                 .head_size = size,
                 .scale = 0.3f,
                 .bias = random.one_in(2) ? bias.at<float>(by_distance ? tokens - 1 : 0) : nullptr,
                 .bias_stride = bias_stride,
                 .bias_query_step = by_distance ? -1 : ptrdiff_t(bias_row),
                 .window = random.one_in(2) ? kNoWindow : random.between(0, 64)};
    Exact out[2];
    for (Exact& each : out) each = room<uint16_t>(random, (tokens - 1) * out_stride + width);
    op.out = out[0].at<uint16_t>();
    fn(&op, 0, heads, 0, tokens, scratch.at<void>());
    op.out = out[1].at<uint16_t>();
    in_parts(random, heads, 1, [&](size_t head, size_t head_end) {
        in_parts(random, tokens, 1,
                 [&](size_t begin, size_t end) { fn(&op, head, head_end, begin, end, scratch.at<void>()); });
    });
    for (const Exact& each : out) one_nan(each, out_stride, width);
    must_equal(out[1], out[0], "attention", "cut otherwise");
}

// Tokens come and attend in pieces cut anywhere, over a table of blocks in any order: the same as all of them at once.
void soak_attention_cached(Random& random, const CachedKernels& kernels) {
    const CacheKind kind = random_cache_kind(random);
    const size_t past = random.one_in(4) ? random.between(900, 1100) : random.between(0, 130),
                 rows = random.between(1, 40), tokens = past + rows, group = random.between(1, 9),
                 heads = random.between(1, 3), size = 16 * random.between(1, random.one_in(8) ? 16 : 6),
                 width = heads * size, stride = 2 * width + random.between(0, 9), q_width = group * width,
                 q_stride = q_width + random.between(0, 9), blocks = (tokens + kCacheBlock - 1) / kCacheBlock,
                 forms = kind == CacheKind::kInt4 ? 3 : 1, in_all = forms * blocks,
                 head_bytes = cache_head_bytes(kind, size), lines = rows * group;
    const bool by_block = random.one_in(2);
    const Exact kv = bf16s(random, (tokens - 1) * stride + 2 * width, 1.0f),
                q = bf16s(random, (rows - 1) * q_stride + q_width, 1.0f), sinks = floats(random, heads * group, 1.0f),
                table = room<int32_t>(random, in_all);
    if (random.one_in(8)) *kv.at<uint16_t>(random.between(0, tokens - 1) * stride) = 0x7f80;
    for (size_t i = 0; i < in_all; ++i) {  // a random permutation
        const size_t other = random.between(0, i);
        *table.at<int32_t>(i) = *table.at<int32_t>(other);
        *table.at<int32_t>(other) = int32_t(i);
    }
    AttendCached op{.cache = {.kind = kind,
                              .blocks = nullptr,
                              .block_stride = by_block ? heads * head_bytes : head_bytes,
                              .head_stride = by_block ? head_bytes : in_all * head_bytes,
                              .head_size = size},
                    .table = table.at<int32_t>(),
                    .table_stride = blocks,
                    .past = past,
                    .rows = rows,
                    .q = q.at<uint16_t>(),
                    .q_stride = q_stride,
                    .out = nullptr,
                    .out_stride = q_stride,
                    .heads_per_kv = group,
                    .scale = 0.3f,
                    .softcap = random.one_in(3) ? 5.0f : 0.0f,
                    .causal = !random.one_in(4),
                    .window = random.one_in(2) ? 0 : random.between(1, 200),
                    .sinks = random.one_in(3) ? sinks.at<float>() : nullptr};
    const auto append = [&](size_t begin, size_t end, size_t head_begin, size_t head_end) {
        const AppendCached added{.cache = op.cache,
                                 .table = op.table,
                                 .table_stride = op.table_stride,
                                 .past = begin,
                                 .k = kv.at<uint16_t>(begin * stride),
                                 .v = kv.at<uint16_t>(begin * stride + width),
                                 .stride = stride};
        kernels.append(&added, 0, end - begin, head_begin, head_end);
    };
    const auto attend = [&](size_t head, size_t begin, size_t end) {
        const CachedRange parts = parts_seen(&op, begin / group, (end - 1) / group + 1);
        const size_t count = parts.end - parts.begin, part_stride = (end - begin) * partial_floats(size);
        const Exact partials = room<float>(random, count * part_stride, 64);
        for (size_t i = 0; i < count; ++i) {
            kernels.attend(&op, head, begin, end, parts.begin + i, partials.at<float>(i * part_stride));
        }
        kernels.merge(&op, head, begin, end, count, partials.at<float>(), part_stride);
    };
    Exact out[2];
    for (int cut = 0; cut < 2; ++cut) {
        const Exact memory(random, in_all * heads * head_bytes, 64);
        out[cut] = room<uint16_t>(random, (rows - 1) * q_stride + q_width);
        op.cache.blocks = memory.at<char>();
        op.out = out[cut].at<uint16_t>();
        if (cut) {
            const std::vector<size_t> at = cuts(random, tokens, 1);
            for (size_t i = 0; i + 1 < at.size(); ++i) {
                in_parts(random, heads, 1, [&](size_t h, size_t end) { append(at[i], at[i + 1], h, end); });
            }
        } else {
            append(0, tokens, 0, heads);
        }
        for (size_t head = 0; head < heads; ++head) {
            if (cut) {
                in_parts(random, lines, 1, [&](size_t begin, size_t end) { attend(head, begin, end); });
            } else {
                attend(head, 0, lines);
            }
        }
        one_nan(out[cut], q_stride, q_width);
    }
    must_equal(out[1], out[0], "attention_cached", "cut otherwise");
}

void soak_gram(Random& random, const GramKernels& kernels) {
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
        const Gram op{.x = x.at<void>(),
                      .bf16 = bf16,
                      .x_stride = stride,
                      .m = m,
                      .k = k,
                      .packed = packed.at<uint16_t>(),
                      .low = low.at<float>(),
                      .high = high.at<float>(),
                      .sum = sums[cut].at<double>(),
                      .sum_abs = magnitude.at<double>(),
                      .gram = gram[cut].at<float>()};
        if (cut) {
            in_parts(random, blocks, 2, [&](size_t begin, size_t end) { kernels.pack(&op, begin, end); });
            in_parts(random, gram_squares(k), 1, [&](size_t begin, size_t end) { kernels.multiply(&op, begin, end); });
        } else {
            kernels.pack(&op, 0, blocks);
            kernels.multiply(&op, 0, gram_squares(k));
        }
    }
    must_equal(gram[1], gram[0], "gram", "cut otherwise");
    must_equal(sums[1], sums[0], "gram", "sums");
}

// soak(kernel) of each variant of an instruction set, whether this processor would choose it or not; of the one that it
// chooses where the operator has none of its own.
template <class Kernel, class Soak>
void soak_variants(Variants<Kernel> variants, Isa isa, Soak soak) {
    bool own = false;
    for (const Variant<Kernel>& variant : variants) {
        if (variant.isa != isa || !runs(variant)) continue;
        soak(variant.kernel);
        own = true;
    }
    const Variant<Kernel>* chosen = best_variant(variants, isa);
    if (!own && chosen) soak(chosen->kernel);
}

}  // namespace

void soak_kernels(Random& random, Isa isa) {
    soak_variants(quantize_rows_variants, isa, [&](QuantizeRowsFn* fn) { soak_quantize_rows(random, fn); });
    soak_variants(quantize_groups_variants, isa, [&](QuantizeGroupsFn* fn) { soak_quantize_groups(random, fn); });
    soak_variants(linear_w4a8_variants, isa, [&](LinearW4A8Fn* fn) { soak_linear_w4a8(random, fn); });
    soak_variants(linear_w4a16_variants, isa, [&](const W4A16Kernels& kernels) { soak_linear_w4a16(random, kernels); });
    soak_variants(linear_w8a8_variants, isa, [&](LinearW8A8Fn* fn) { soak_linear_w8a8(random, fn); });
    soak_variants(linear_bf16_variants, isa, [&](LinearBf16Fn* fn) { soak_linear_bf16(random, fn); });
    soak_linear_wna16(random, isa);
    soak_variants(rows_variants, isa, [&](const RowOperators* rows) { soak_rows(random, *rows); });
    soak_variants(norm_variants, isa, [&](NormFn* fn) { soak_norm(random, fn); });
    soak_variants(attention_variants, isa,
                  [&](AttentionFn* fn) { soak_attention(random, fn, attention_scratch_bytes); });
    soak_variants(attention_int8_variants, isa,
                  [&](AttentionFn* fn) { soak_attention(random, fn, attention_int8_scratch_bytes); });
    soak_variants(attention_cached_variants, isa,
                  [&](const CachedKernels* kernels) { soak_attention_cached(random, *kernels); });
    soak_variants(gram_variants, isa, [&](const GramKernels& kernels) { soak_gram(random, kernels); });
}
