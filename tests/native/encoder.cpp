// Random programs without state: an embedding, one to three blocks of attention and two linears, then rows of tokens or
// a pooled head, each of random widths, kinds and settings.
#include "builder.h"

namespace {

// The scalar variants, plain loops, are a hundred times as slow as the others.
Sizes sizes_of(Isa isa) { return isa == Isa::kScalar ? Sizes{60, 32, 48} : Sizes{700, 150, 260}; }

// Rows of the tables rise with the distance, near 0 by one each.
void disentangled(Builder& b, int qkv, int out, size_t heads, size_t size) {
    const size_t longest = b.most.longest, near = b.random.between(0, 60), distances = 2 * longest - 1;
    Exact rows = room<int32_t>(b.random, distances);
    int32_t row = 0;
    for (size_t i = 0; i < distances; ++i) {
        const size_t distance = i < longest ? longest - 1 - i : i - (longest - 1);
        *rows.at<int32_t>(i) = row;
        row += distance <= near || b.random.one_in(4);
    }
    AttendDisentangled op{.in = qkv,
                          .out = out,
                          .heads = heads,
                          .head_size = size,
                          .scale = 1.0f / sqrtf(float(size)),
                          .key_table = nullptr,
                          .query_table = nullptr,
                          .table_rows = round_up(row + 1, 16),
                          .row = b.keep<int32_t>(std::move(rows)) + (longest - 1),
                          .integer = b.random.one_in(2)};
    const size_t table = heads * op.table_rows * round_up(size, 32), which = b.random.between(0, 2);
    if (which != 0) op.key_table = b.keep<uint16_t>(bf16s(b.random, table, 0.1f, 64));
    if (which != 1) op.query_table = b.keep<uint16_t>(bf16s(b.random, table, 0.1f, 64));
    b.add(op, {qkv, out});
}

int attention(Builder& b, int x) {
    Random& random = b.random;
    const size_t heads = random.between(1, 4), size = 8 * random.between(1, random.one_in(6) ? 12 : 5),
                 width = heads * size;
    const int qkv = b.project(x, width, width);
    if (random.one_in(2)) b.rotate(qkv, 2 * heads, size);
    const int out = b.buffer(BufferKind::kBf16, width);
    if (b.number % 5 == 0) {
        disentangled(b, qkv, out, heads, size);
        return b.output(out, x);
    }
    Attend op{.in = qkv,
              .out = out,
              .heads = heads,
              .head_size = size,
              .scale = 1.0f / sqrtf(float(size)),
              .bias = nullptr,
              .bias_stride = 0,
              .window = kNoWindow,
              .integer = random.one_in(2)};
    if (b.number & 1) {
        op.bias_stride = 2 * b.most.longest - 1;
        op.bias = b.keep<float>(floats(random, heads * op.bias_stride, 1.0f)) + (b.most.longest - 1);
    }
    if (b.number & 2) op.window = random.between(0, 64);
    b.add(op, {qkv, out});
    return b.output(out, x);
}

int head(Builder& b, int x) {
    Random& random = b.random;
    const size_t width = b.at(x).width, modes = random.between(1, 3);
    const int pooled = b.buffer(BufferKind::kF32, width * modes, Per::kSequence);
    for (size_t i = 0; i < modes; ++i) b.add(Pool{x, pooled, PoolMode((b.number + i) % 6), i * width}, {x, pooled});
    if (random.one_in(2)) b.add(Normalize{pooled}, {pooled});
    if (random.one_in(2)) return pooled;
    const size_t labels = random.between(1, 70);
    const int out = b.buffer(BufferKind::kF32, labels, Per::kSequence);
    b.linear(b.operand(pooled), out, 0, labels, Activation::kNone);
    if (random.one_in(2)) b.add(Activate{out, b.function()}, {out});
    return out;
}

}  // namespace

std::unique_ptr<Model> random_encoder(Random& random, Isa isa, size_t number) {
    static constexpr WordKind kinds[] = {WordKind::kInt8, WordKind::kBf16, WordKind::kF32};
    Builder b(random, isa, number, sizes_of(isa));
    const size_t first = random.between(0, 2), types = random.one_in(2) ? random.between(1, 3) : 0;
    const int64_t padding = int64_t(first) - 1;  // kNone if positions begin at 0
    int x = b.embed(b.random_width(b.most.width), kinds[number % 3], first, padding, types);
    for (size_t blocks = random.between(1, 3); blocks > 0; --blocks) x = b.feed_forward(attention(b, x));
    return b.finish(number % 4 ? head(b, x) : x);
}
