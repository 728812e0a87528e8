// Random programs: an embedding, one to three blocks of attention and two linears, then rows of tokens or a pooled
// head, each of random widths, kinds and settings, the buffers placed as Python places them.
#include "model.h"

#include <algorithm>

#include "cpu.h"
#include "fill.h"

namespace {

// Tokens of a sequence, values of a row, and outputs of a block's first linear, at most.
struct Sizes {
    size_t longest, width, inner;
};

// The scalar variants, plain loops, are a hundred times as slow as the others.
Sizes sizes_of(Isa isa) { return isa == Isa::kScalar ? Sizes{60, 32, 48} : Sizes{700, 150, 260}; }

class Builder {
public:
    Builder(Random& random, Isa isa, size_t number)
        : random_(random), isa_(isa), number_(number), most_(sizes_of(isa)), model_(new Model) {}

    std::unique_ptr<Model> build() {
        const size_t width = random_.between(1, most_.width);
        int x = embed(width);
        for (size_t blocks = random_.between(1, 3); blocks > 0; --blocks) x = feed_forward(attention(x));
        const int out = number_ % 4 ? head(x) : x;
        buffers_[out].last = ops_.size();
        model_->width = buffers_[out].buffer.width;
        model_->per = buffers_[out].buffer.per;
        static constexpr size_t groups[] = {1, 32, 100, 500, 1 << 20};
        const size_t arena_row = place();
        std::vector<Buffer> placed;
        for (const Placed& each : buffers_) placed.push_back(each.buffer);
        model_->program = std::make_unique<Program>(isa_, placed, arena_row, out, groups[random_.between(0, 4)]);
        for (const Op& op : ops_) {
            model_->program->add(op);
            ++model_->operators[op.index()];
        }
        return std::move(model_);
    }

    size_t vocabulary = 0, types = 0;

private:
    struct Placed {
        Buffer buffer;
        size_t first, last;  // operators between which it is alive
    };

    int buffer(BufferKind kind, size_t width, Per per = Per::kToken) {
        buffers_.push_back({{.kind = kind, .width = width, .offset = 0, .per = per}, ops_.size(), ops_.size()});
        return int(buffers_.size()) - 1;
    }

    const Buffer& at(int index) const { return buffers_[index].buffer; }

    void add(Op op, std::initializer_list<int> touched) {
        for (int index : touched) {
            if (index != kNone) buffers_[index].last = ops_.size();
        }
        ops_.push_back(op);
    }

    template <class T>
    const T* keep(Exact values) {
        model_->weights.push_back(std::move(values));
        return model_->weights.back().at<T>();
    }

    int embed(size_t width) {
        vocabulary = random_.between(1, 60);
        types = random_.one_in(2) ? random_.between(1, 3) : 0;
        const size_t first = random_.between(0, 2), count = vocabulary * width;
        const WordKind kind[] = {WordKind::kInt8, WordKind::kBf16, WordKind::kF32};
        const int64_t padding = first ? int64_t(first) - 1 : int64_t(kNone);  // an id that takes no place
        Embed op{.words = nullptr,
                 .kind = kind[number_ % 3],
                 .word_scale = nullptr,
                 .positions = nullptr,
                 .first_position = first,
                 .padding = padding,
                 .types = nullptr,
                 .factor = random_.one_in(2) ? 1.0f : 2.5f,
                 .out = buffer(BufferKind::kF32, width)};
        if (op.kind == WordKind::kInt8) {
            Exact codes = room<int8_t>(random_, count);
            for (size_t i = 0; i < count; ++i) *codes.at<int8_t>(i) = int8_t(random_.bits());
            op.words = keep<void>(std::move(codes));
            op.word_scale = keep<float>(floats(random_, vocabulary, 0.001f, 0.02f));
        } else {
            op.words =
                keep<void>(op.kind == WordKind::kBf16 ? bf16s(random_, count, 1.0f) : floats(random_, count, 1.0f));
        }
        if (random_.one_in(2)) op.positions = keep<float>(floats(random_, (first + most_.longest) * width, 0.5f));
        if (types) op.types = keep<float>(floats(random_, types * width, 0.5f));
        add(op, {op.out});
        return op.out;
    }

    InputGrid grid(size_t k, size_t pad, QuantizeMode mode) {
        const bool symmetric = mode == QuantizeMode::kSymmetric || (mode == QuantizeMode::kStatic && random_.one_in(2));
        InputGrid grid{nullptr,
                       nullptr,
                       mode,
                       0.03f,
                       symmetric ? 0 : int32_t(random_.between(0, 255)) - 128,
                       symmetric ? -127 : -128};
        if (random_.one_in(3)) {
            Transform transform(random_, k, round_up(k, pad));
            grid.shift = keep<float>(std::move(transform.shift));
            grid.multiplier = keep<float>(std::move(transform.multiplier));
        }
        return grid;
    }

    Function function() { return Function(random_.between(0, 4)); }

    Activation activation() { return random_.one_in(2) ? Activation::kGelu : Activation::kNone; }

    InputGrid grid(size_t k) { return grid(k, 64, QuantizeMode(random_.between(0, 2))); }

    // What a linear reads of x: codes, or bf16.
    int operand(int x, bool codes) {
        const Buffer from = at(x);
        if (from.kind == BufferKind::kCodes || (from.kind == BufferKind::kBf16 && !codes && random_.one_in(2)))
            return x;
        const int out = buffer(codes ? BufferKind::kCodes : BufferKind::kBf16, from.width, from.per);
        if (codes) {
            add(Quantize{x, out, grid(from.width)}, {x, out});
        } else {
            add(Round{x, out, random_.one_in(2), grid(from.width)}, {x, out});
        }
        return out;
    }

    int operand(int x) { return operand(x, random_.one_in(2)); }

    // Columns [column, column + n) of out from x, codes or bf16.
    void linear(int x, int out, size_t column, size_t n, Activation activation) {
        const size_t k = at(x).width;
        if (at(x).kind == BufferKind::kCodes) {
            Int8Weight w(random_, n, k);
            const int8_t* weight = keep<int8_t>(std::move(w.weight));
            const int32_t* colsum = keep<int32_t>(std::move(w.colsum));
            const float* scale = keep<float>(std::move(w.scale));
            add(MultiplyW8A8{x, out, column, n, 1, weight, colsum, scale, keep<float>(std::move(w.bias)), activation,
                             at(out).kind == BufferKind::kCodes ? grid(n, 16, QuantizeMode::kStatic) : InputGrid{}},
                {x, out});
        } else if (random_.one_in(2)) {
            Bf16Weight w(random_, n, k);
            const uint16_t* weight = keep<uint16_t>(std::move(w.weight));
            add(MultiplyBf16{x, out, column, n, weight, keep<float>(std::move(w.bias)), activation}, {x, out});
        } else {
            WnaWeight w(random_, n, k, random_.one_in(2), random_group(random_, k));
            const Wna16 weight = w.weight;
            for (Exact* each : {&w.codes, &w.levels, &w.scale, &w.zero}) keep<void>(std::move(*each));
            add(MultiplyWna16{x, out, column, n, weight, keep<float>(std::move(w.bias)), activation}, {x, out});
        }
    }

    // The norm of x + residual; now and then also its codes, or the sum, which then is what later blocks add to.
    int norm(int x, int residual) {
        const size_t width = at(x).width;
        const bool in_place = random_.one_in(4);
        NormRows op{.x = x,
                    .residual = random_.one_in(4) ? int(kNone) : residual,
                    .sum = kNone,
                    .y = kNone,
                    .codes = kNone,
                    .weight = keep<float>(floats(random_, width, 0.1f, 1.0f)),
                    .bias = nullptr,
                    .eps = 1e-5f,
                    .centred = !random_.one_in(3),
                    .grid = {}};
        if (random_.one_in(2)) op.bias = keep<float>(floats(random_, width, 0.1f));
        op.y = in_place ? x : buffer(BufferKind::kF32, width);
        if (random_.one_in(2)) {
            op.grid = grid(width);
            op.codes = codes_ = buffer(BufferKind::kCodes, width);
        }
        if (random_.one_in(3)) op.sum = buffer(BufferKind::kF32, width);
        add(op, {op.x, op.residual, op.sum, op.y, op.codes});
        return op.sum != kNone && random_.one_in(2) ? op.sum : op.y;
    }

    // What the last norm quantized, if anything has not read it yet; else x.
    int newest(int x) {
        const int codes = codes_;
        codes_ = kNone;
        return codes == kNone ? x : codes;
    }

    int attention(int x) {
        const size_t heads = random_.between(1, 4), size = 8 * random_.between(1, random_.one_in(6) ? 12 : 5),
                     width = heads * size;
        const int qkv = buffer(BufferKind::kBf16, 3 * width), source = newest(x);
        if (width % 16 || random_.one_in(2)) {
            linear(operand(source), qkv, 0, 3 * width, Activation::kNone);
        } else {
            for (size_t i = 0; i < 3; ++i) linear(operand(source), qkv, i * width, width, Activation::kNone);
        }
        if (random_.one_in(2)) {
            const float* cos = keep<float>(floats(random_, most_.longest * size / 2, 0.5f));
            add(Rotate{qkv, 2 * heads, size, cos, keep<float>(floats(random_, most_.longest * size / 2, 0.5f))}, {qkv});
        }
        const int out = buffer(BufferKind::kBf16, width);
        if (number_ % 5 == 0) {
            disentangled(qkv, out, heads, size);
        } else {
            Attend op{qkv, out, heads, size, 1.0f / sqrtf(float(size)), nullptr, 0, kNoWindow, random_.one_in(2)};
            if (number_ & 1) {
                op.bias_stride = 2 * most_.longest - 1;
                op.bias = keep<float>(floats(random_, heads * op.bias_stride, 1.0f)) + (most_.longest - 1);
            }
            if (number_ & 2) op.window = random_.between(0, 64);
            add(op, {qkv, out});
        }
        return output(out, x);
    }

    // Rows of the tables rise with the distance, near 0 by one each.
    void disentangled(int qkv, int out, size_t heads, size_t size) {
        const size_t near = random_.between(0, 60), distances = 2 * most_.longest - 1;
        Exact rows = room<int32_t>(random_, distances);
        int32_t row = 0;
        for (size_t i = 0; i < distances; ++i) {
            const size_t distance = i < most_.longest ? most_.longest - 1 - i : i - (most_.longest - 1);
            *rows.at<int32_t>(i) = row;
            row += distance <= near || random_.one_in(4);
        }
        AttendDisentangled op{qkv,
                              out,
                              heads,
                              size,
                              1.0f / sqrtf(float(size)),
                              nullptr,
                              nullptr,
                              round_up(row + 1, 16),
                              nullptr,
                              random_.one_in(2)};
        op.row = keep<int32_t>(std::move(rows)) + (most_.longest - 1);
        const size_t table = heads * op.table_rows * round_up(size, 32);
        const size_t which = random_.between(0, 2);
        if (which != 0) op.key_table = keep<uint16_t>(bf16s(random_, table, 0.1f, 64));
        if (which != 1) op.query_table = keep<uint16_t>(bf16s(random_, table, 0.1f, 64));
        add(op, {qkv, out});
    }

    int feed_forward(int x) {
        const size_t inner = random_.between(1, most_.inner);
        const int in = operand(newest(x));
        if (at(in).kind == BufferKind::kCodes && random_.one_in(2)) {
            const int codes = buffer(BufferKind::kCodes, inner);
            linear(in, codes, 0, inner, activation());
            return output(codes, x);
        }
        const bool gated = random_.one_in(2);
        const int up =
            buffer(gated || random_.one_in(2) ? BufferKind::kBf16 : BufferKind::kF32, gated ? 2 * inner : inner);
        linear(in, up, 0, at(up).width, activation());
        if (random_.one_in(2)) add(Activate{up, function()}, {up});
        if (!gated) return output(up, x);
        const bool coded = random_.one_in(2);
        const int down = buffer(coded ? BufferKind::kCodes : BufferKind::kBf16, inner);
        add(Gate{up, down, function(), coded ? grid(inner) : InputGrid{}}, {up, down});
        return output(down, x);
    }

    // Back to the width of the stream, to which it is added.
    int output(int in, int x) {
        const int h = buffer(BufferKind::kF32, at(x).width);
        linear(operand(in), h, 0, at(x).width, Activation::kNone);
        return norm(h, x);
    }

    int head(int x) {
        const size_t width = at(x).width, modes = random_.between(1, 3);
        const int pooled = buffer(BufferKind::kF32, width * modes, Per::kSequence);
        for (size_t i = 0; i < modes; ++i) add(Pool{x, pooled, PoolMode((number_ + i) % 6), i * width}, {x, pooled});
        if (random_.one_in(2)) add(Normalize{pooled}, {pooled});
        if (random_.one_in(2)) return pooled;
        const size_t labels = random_.between(1, 70);
        const int out = buffer(BufferKind::kF32, labels, Per::kSequence);
        linear(operand(pooled), out, 0, labels, Activation::kNone);
        if (random_.one_in(2)) add(Activate{out, function()}, {out});
        return out;
    }

    // First fit, in the order of first use; returns the arena's bytes per row.
    size_t place() {
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

    Random& random_;
    const Isa isa_;
    const size_t number_;
    const Sizes most_;
    std::unique_ptr<Model> model_;
    std::vector<Placed> buffers_;
    std::vector<Op> ops_;
    int codes_ = kNone;  // of the last norm
};

// Lengths around what kernels take at once, mostly short.
size_t random_length(Random& random, size_t longest) {
    const size_t most = random.one_in(12) ? longest : random.one_in(3) ? 140 : 34;
    return random.between(1, std::min(most, longest));
}

}  // namespace

std::unique_ptr<Model> random_model(Random& random, Isa isa, size_t number) {
    Builder builder(random, isa, number);
    std::unique_ptr<Model> model = builder.build();
    for (size_t sequences = random.between(4, 12); sequences > 0; --sequences) {
        for (size_t left = random_length(random, sizes_of(isa).longest); left > 0; --left) {
            model->pool.ids.push_back(int32_t(random.between(0, builder.vocabulary - 1)));
            if (builder.types) model->pool.types.push_back(int32_t(random.between(0, builder.types - 1)));
        }
        model->pool.starts.push_back(int64_t(model->pool.ids.size()));
    }
    for (size_t s = 0; s + 1 < model->pool.starts.size(); ++s) model->alone.push_back(model->compute(random, {s}, 1));
    return model;
}

std::vector<float> Model::compute(Random& random, const std::vector<size_t>& chosen, int threads) const {
    Sequences batch;
    size_t values = 0;
    for (size_t s : chosen) {
        const size_t begin = pool.starts[s], end = pool.starts[s + 1];
        batch.ids.insert(batch.ids.end(), pool.ids.begin() + begin, pool.ids.begin() + end);
        if (!pool.types.empty())
            batch.types.insert(batch.types.end(), pool.types.begin() + begin, pool.types.begin() + end);
        batch.starts.push_back(batch.starts.back() + int64_t(end - begin));
        values += (per == Per::kSequence ? 1 : end - begin) * width;
    }
    const Exact out = room<float>(random, values);
    std::vector<double> seconds(program->op_count());
    if (!program->run(
            {batch.ids.data(), batch.types.empty() ? nullptr : batch.types.data(), batch.starts.data(), chosen.size()},
            threads, out.at<float>(), random.one_in(8) ? seconds.data() : nullptr)) {
        fail("run", "out of memory");
    }
    return {out.at<float>(), out.at<float>(values)};
}

void Model::check(Random& random, size_t most, int most_threads) const {
    std::vector<size_t> chosen;
    for (size_t i = random.between(1, most); i > 0; --i) chosen.push_back(random.between(0, alone.size() - 1));
    const std::vector<float> got = compute(random, chosen, int(random.between(1, most_threads)));
    const float* row = got.data();
    for (size_t s : chosen) {
        if (memcmp(row, alone[s].data(), alone[s].size() * sizeof(float))) fail("run", "a result depends on its batch");
        row += alone[s].size();
    }
}
