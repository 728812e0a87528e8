// See builder.h. Where Python decides (buffers placed, operands derived), this does it the same way or at random.
#include "builder.h"

#include <algorithm>

std::unique_ptr<Model> Builder::finish(int out) {
    static constexpr size_t groups[] = {1, 32, 100, 500, 1 << 20};
    buffers_[out].last = ops_.size();
    model->width = at(out).width;
    model->per = at(out).per;
    model->longest = most.longest;
    const size_t arena_row = place();
    std::vector<Buffer> placed;
    for (const Placed& each : buffers_) placed.push_back(each.buffer);
    model->program = std::make_unique<Program>(isa, placed, arena_row, out, groups[random.between(0, 4)]);
    for (const Op& op : ops_) {
        model->program->add(op);
        ++model->operators[op.index()];
    }
    return std::move(model);
}

int Builder::buffer(BufferKind kind, size_t width, Per per, size_t group) {
    buffers_.push_back(
        {{.kind = kind, .width = width, .offset = 0, .per = per, .group = group}, ops_.size(), ops_.size()});
    return int(buffers_.size()) - 1;
}

void Builder::add(Op op, std::initializer_list<int> touched) {
    for (int index : touched) {
        if (index != kNone) buffers_[index].last = ops_.size();
    }
    ops_.push_back(op);
}

size_t Builder::random_width(size_t most) {
    return random.one_in(2) ? 8 * random.between(1, most / 8) : random.between(1, most);
}

int Builder::embed(size_t width, WordKind kind, size_t first_position, int64_t padding, size_t types) {
    model->vocabulary = random.between(1, 60);
    model->types = types;
    const size_t count = model->vocabulary * width;
    Embed op{.words = nullptr,
             .kind = kind,
             .word_scale = nullptr,
             .positions = nullptr,
             .first_position = first_position,
             .padding = padding,
             .types = nullptr,
             .factor = random.one_in(2) ? 1.0f : 2.5f,
             .out = buffer(BufferKind::kF32, width)};
    if (kind == WordKind::kInt8) {
        op.words = keep<void>(bytes<int8_t>(random, count));
        op.word_scale = keep<float>(floats(random, model->vocabulary, 0.001f, 0.02f));
    } else {
        op.words = keep<void>(kind == WordKind::kBf16 ? bf16s(random, count, 1.0f) : floats(random, count, 1.0f));
    }
    if (random.one_in(2)) op.positions = keep<float>(floats(random, (first_position + most.longest) * width, 0.5f));
    if (types) op.types = keep<float>(floats(random, types * width, 0.5f));
    add(op, {op.out});
    return op.out;
}

InputGrid Builder::grid(size_t k, size_t pad, QuantizeMode mode) {
    const bool symmetric = mode == QuantizeMode::kSymmetric || (mode == QuantizeMode::kStatic && random.one_in(2));
    InputGrid grid{.shift = nullptr,
                   .multiplier = nullptr,
                   .mode = mode,
                   .static_scale = 0.03f,
                   .static_zero_point = symmetric ? 0 : int32_t(random.between(0, 255)) - 128,
                   .code_min = symmetric ? -127 : -128};
    if (random.one_in(3)) {
        Transform transform(random, k, round_up(k, pad));
        grid.shift = keep<float>(std::move(transform.shift));
        grid.multiplier = keep<float>(std::move(transform.multiplier));
    }
    return grid;
}

// Of what becomes this buffer. bf16 values are rounded to the grid of codes of rows.
InputGrid Builder::grid_of(int out) {
    return grid(at(out).width, at(out).kind == BufferKind::kGroups ? 8 : 64, QuantizeMode(random.between(0, 2)));
}

BufferKind Builder::operand_kind(size_t width) {
    static constexpr BufferKind kinds[] = {BufferKind::kBf16, BufferKind::kCodes, BufferKind::kGroups};
    return kinds[random.between(0, width % 8 ? 1 : 2)];
}

int Builder::operand_buffer(BufferKind kind, size_t width, Per per) {
    size_t group = 0;
    if (kind == BufferKind::kGroups) {
        for (group = 8 * random.between(1, 16); width % group;) group -= 8;
    }
    return buffer(kind, width, per, group);
}

int Builder::operand(int x) {
    const Buffer from = at(x);
    if (from.kind == BufferKind::kCodes || from.kind == BufferKind::kGroups) return x;
    const BufferKind kind = operand_kind(from.width);
    if (from.kind == BufferKind::kBf16 && kind == BufferKind::kBf16 && random.one_in(2)) return x;
    const int out = operand_buffer(kind, from.width, from.per);
    if (kind == BufferKind::kBf16) {
        add(Round{x, out, random.one_in(2), grid_of(out)}, {x, out});
    } else {
        add(Quantize{x, out, grid_of(out)}, {x, out});
    }
    return out;
}

void Builder::linear(int x, int out, size_t column, size_t n, Activation activation) {
    const Buffer from = at(x);
    const size_t k = from.width;
    if (from.kind == BufferKind::kCodes) {
        Int8Weight w(random, n, k);
        const int8_t* weight = keep<int8_t>(std::move(w.weight));
        const int32_t* colsum = keep<int32_t>(std::move(w.colsum));
        const float* scale = keep<float>(std::move(w.scale));
        add(MultiplyW8A8{x, out, column, n, 1, weight, colsum, scale, keep<float>(std::move(w.bias)), activation,
                         at(out).kind == BufferKind::kCodes ? grid(n, 16, QuantizeMode::kStatic) : InputGrid{}},
            {x, out});
    } else if (from.kind == BufferKind::kGroups) {
        const size_t groups = k / from.group;
        size_t per = random.between(1, 3);
        while (groups % per) --per;
        Wna8Weight w(random, n, groups, from.group, per, random.one_in(2), 1);
        const Wna8 weight = w.weight;
        for (Exact* each : {&w.codes, &w.levels, &w.scale, &w.zero, &w.minimum}) keep<void>(std::move(*each));
        add(MultiplyW4A8{x, out, column, n, 1, weight, keep<float>(std::move(w.bias)), activation}, {x, out});
    } else if (random.one_in(2)) {
        Bf16Weight w(random, n, k);
        const uint16_t* weight = keep<uint16_t>(std::move(w.weight));
        add(MultiplyBf16{x, out, column, n, weight, keep<float>(std::move(w.bias)), activation}, {x, out});
    } else {
        WnaWeight w(random, n, k, random.one_in(2), random_group(random, k));
        const Wna16 weight = w.weight;
        for (Exact* each : {&w.codes, &w.levels, &w.scale, &w.zero}) keep<void>(std::move(*each));
        add(MultiplyWna16{x, out, column, n, weight, keep<float>(std::move(w.bias)), activation}, {x, out});
    }
}

int Builder::project(int x, size_t q_width, size_t kv_width) {
    const size_t width = q_width + 2 * kv_width;
    const int qkv = buffer(BufferKind::kBf16, width), source = newest(x);
    if (q_width % 16 || kv_width % 16 || random.one_in(2)) {
        linear(operand(source), qkv, 0, width, Activation::kNone);
    } else {
        linear(operand(source), qkv, 0, q_width, Activation::kNone);
        linear(operand(source), qkv, q_width, kv_width, Activation::kNone);
        linear(operand(source), qkv, q_width + kv_width, kv_width, Activation::kNone);
    }
    return qkv;
}

void Builder::rotate(int rows, size_t heads, size_t head_size) {
    const size_t angles = most.longest * head_size / 2;
    const float* cos = keep<float>(floats(random, angles, 0.5f));
    add(Rotate{rows, heads, head_size, cos, keep<float>(floats(random, angles, 0.5f))}, {rows});
}

int Builder::norm(int x, int residual) {
    const size_t width = at(x).width;
    const Per per = at(x).per;
    const bool in_place = at(x).kind == BufferKind::kF32 && random.one_in(4);
    NormRows op{.x = x,
                .residual = random.one_in(4) ? int(kNone) : residual,
                .sum = kNone,
                .y = kNone,
                .codes = kNone,
                .weight = keep<float>(floats(random, width, 0.1f, 1.0f)),
                .bias = nullptr,
                .eps = 1e-5f,
                .centred = random.one_in(2),
                .residual_after = false,
                .grid = {}};
    if (random.one_in(2)) op.bias = keep<float>(floats(random, width, 0.1f));
    op.y = in_place ? x : buffer(BufferKind::kF32, width, per);
    const BufferKind kind = operand_kind(width);
    if (kind != BufferKind::kBf16) {
        op.codes = operand_buffer(kind, width, per);
        op.grid = grid_of(op.codes);
    }
    codes_ = op.codes;
    if (random.one_in(3)) op.sum = buffer(BufferKind::kF32, width, per);
    op.residual_after = op.residual != kNone && op.sum == kNone && random.one_in(3);
    add(op, {op.x, op.residual, op.sum, op.y, op.codes});
    return op.sum != kNone && random.one_in(2) ? op.sum : op.y;
}

int Builder::newest(int x) {
    const int codes = codes_;
    codes_ = kNone;
    return codes == kNone ? x : codes;
}

int Builder::feed_forward(int x) {
    const size_t inner = random_width(most.inner);
    const int in = operand(newest(x));
    if (at(in).kind == BufferKind::kCodes && random.one_in(2)) {
        const int codes = buffer(BufferKind::kCodes, inner);
        linear(in, codes, 0, inner, activation());
        return output(codes, x);
    }
    const bool gated = random.one_in(2);
    const int up = buffer(gated || random.one_in(2) ? BufferKind::kBf16 : BufferKind::kF32, gated ? 2 * inner : inner);
    linear(in, up, 0, at(up).width, activation());
    if (random.one_in(2)) add(Activate{up, function()}, {up});
    if (!gated) return output(up, x);
    const int down =
        random.one_in(4) ? buffer(BufferKind::kF32, inner) : operand_buffer(operand_kind(inner), inner, Per::kToken);
    add(Gate{up, down, function(), grid_of(down)}, {up, down});
    return output(down, x);
}

int Builder::output(int in, int x) {
    const int h = buffer(BufferKind::kF32, at(x).width);
    linear(operand(in), h, 0, at(x).width, Activation::kNone);
    if (at(x).kind == BufferKind::kF32 && random.one_in(3)) add(Add{h, x}, {h, x});
    return norm(h, x);
}

// First fit, in the order of first use; returns the arena's bytes per row.
size_t Builder::place() {
    size_t size = 0;
    for (size_t i = 0; i < buffers_.size(); ++i) {
        Placed& mine = buffers_[i];
        const size_t bytes = row_bytes(mine.buffer);
        std::vector<std::pair<size_t, size_t>> taken;
        for (size_t j = 0; j < i; ++j) {
            const Placed& other = buffers_[j];
            if (other.first > mine.last || mine.first > other.last) continue;
            taken.emplace_back(other.buffer.offset, other.buffer.offset + row_bytes(other.buffer));
        }
        std::sort(taken.begin(), taken.end());
        size_t offset = 0;
        for (const auto& [begin, end] : taken) {
            if (offset + bytes <= begin) break;
            offset = std::max(offset, end);
        }
        mine.buffer.offset = offset;
        size = std::max(size, offset + bytes);
    }
    return size;
}
