// Random programs with state: an embedding, one or two blocks of attention over a cache, or of a convolution with one,
// and two linears, then rows of tokens, or the head of those whose output is wanted.
#include <algorithm>

#include "builder.h"

namespace {

// Sequences reach into a second part of a cache.
Sizes sizes_of(Isa isa) {
    const size_t longest = kPart + 3 * kCacheBlock;
    return isa == Isa::kScalar ? Sizes{longest, 24, 32} : Sizes{longest, 150, 260};
}

int attention(Builder& b, int x) {
    Random& random = b.random;
    const size_t kv_heads = random.between(1, b.isa == Isa::kScalar ? 1 : 3),
                 heads = kv_heads * random.between(1, random.one_in(8) ? 9 : 4), size = 16 * random.between(1, 4);
    const int qkv = b.project(x, heads * size, kv_heads * size), out = b.buffer(BufferKind::kBf16, heads * size);
    AttendPast op{.in = qkv,
                  .out = out,
                  .heads = heads,
                  .kv_heads = kv_heads,
                  .head_size = size,
                  .scale = 1.0f / sqrtf(float(size)),
                  .softcap = random.one_in(3) ? 5.0f : 0.0f,
                  .window = random.one_in(2) ? random.between(1, 200) : 0,
                  .causal = b.model->causal,
                  .sinks = nullptr,
                  .kind = random_cache_kind(random),
                  .layer = b.model->cache_bytes,
                  .q_weight = nullptr,
                  .k_weight = nullptr,
                  .eps = 1e-6f,
                  .rotary = 0,
                  .interleaved = random.one_in(3),
                  .cos = nullptr,
                  .sin = nullptr};
    b.model->cache_bytes += kv_heads * cache_head_bytes(op.kind, size);
    if (random.one_in(3)) op.sinks = b.keep<float>(floats(random, heads, 1.0f));
    if (random.one_in(3)) {
        const size_t column = random.one_in(2) ? 0 : heads * size, n = (column ? kv_heads : heads) * size;
        b.add(NormColumns{qkv, column, n, b.keep<float>(floats(random, n, 0.1f, 1.0f)), 1e-6f}, {qkv});
    }
    if (random.one_in(2)) op.q_weight = b.keep<float>(floats(random, size, 0.1f, 1.0f));
    if (random.one_in(2)) op.k_weight = b.keep<float>(floats(random, size, 0.1f, 1.0f));
    if (random.one_in(4)) {
        b.rotate(qkv, heads + kv_heads, size);
    } else if (!random.one_in(3)) {
        op.rotary = 2 * random.between(1, size / 2);
        op.cos = b.keep<float>(floats(random, b.most.longest * op.rotary / 2, 0.5f));
        op.sin = b.keep<float>(floats(random, b.most.longest * op.rotary / 2, 0.5f));
    }
    b.add(op, {qkv, out});
    return b.output(random.one_in(3) ? b.newest(b.norm(out, kNone)) : out, x);
}

int convolution(Builder& b, int x) {
    static constexpr size_t row_counts[] = {8, 16, 64};
    Random& random = b.random;
    const size_t width = 8 * random.between(1, b.most.width / 8), rows = row_counts[random.between(0, 2)],
                 taps = random.one_in(2) ? 3 : random.between(1, kMostTaps);
    const int gates = b.project(x, width, width), out = b.buffer(BufferKind::kBf16, width);
    ConvolvePast op{.in = gates,
                    .out = out,
                    .taps = taps,
                    .rows = rows,
                    .layer = b.model->cache_bytes,
                    .weight = b.keep<float>(floats(random, taps * width, 0.5f)),
                    .bias = nullptr};
    if (random.one_in(2)) op.bias = b.keep<float>(floats(random, width, 0.5f));
    b.model->cache_bytes += cache_rows_bytes(rows, width);
    b.model->undone = std::min(b.model->undone, rows - (taps - 1));
    b.add(op, {gates, out});
    return b.output(out, x);
}

int head(Builder& b, int x) {
    const size_t width = b.at(x).width, words = b.random.between(1, 200);
    const int wanted = b.buffer(BufferKind::kF32, width, Per::kOutput);
    b.add(Select{x, wanted}, {x, wanted});
    int y = b.norm(wanted, kNone);
    if (b.number & 1) {
        const int twice = b.buffer(BufferKind::kF32, 2 * width, Per::kOutput);
        b.add(Repeat{y, twice}, {y, twice});
        y = twice;
    } else {
        y = b.newest(y);
    }
    const int out = b.buffer(BufferKind::kF32, words, Per::kOutput);
    b.linear(b.operand(y), out, 0, words, Activation::kNone);
    if (b.number & 1) b.add(Softcap{out, 3.0f}, {out});
    return out;
}

}  // namespace

std::unique_ptr<Model> random_decoder(Random& random, Isa isa, size_t number) {
    static constexpr WordKind kinds[] = {WordKind::kInt8, WordKind::kBf16, WordKind::kF32};
    Builder b(random, isa, number, sizes_of(isa));
    b.model->causal = !random.one_in(6);
    int x = b.embed(b.random_width(b.most.width), kinds[number % 3], 0, kNone, 0);
    x = b.norm(x, kNone);
    for (size_t blocks = random.between(1, 2); blocks > 0; --blocks) {
        x = b.feed_forward((number + blocks) % 2 ? attention(b, x) : convolution(b, x));
    }
    return b.finish(number % 4 ? head(b, x) : x);
}
