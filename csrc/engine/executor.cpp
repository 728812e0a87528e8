// Running a program: how a batch is cut into groups, and each operator among the threads that share it. Longer than other
// files, because each operator is a few lines on the same view of a group, and reads best beside the others.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <new>

#include "count.h"
#include "pool.h"
#include "program.h"
#include "rows.h"
#include "share.h"

struct Memory {
    char* data;
    size_t bytes;
};

namespace {

constexpr size_t kHugePage = 2 << 20;
// Rows per thread from which on a linear is cut by rows: fewer, and each thread reading all the weights costs more than
// the wait that a cut by columns brings.
constexpr size_t kRowsPerThread = 48;
// Tokens per thread from which on a thread takes whole groups.
constexpr size_t kTokensPerThread = 96;
// A cut into whole groups is good enough if its longest thread takes no more than this times the mean.
constexpr double kImbalance = 1.15;

// A group of sequences on its way through the program, as one of the threads that share it sees it.
struct Work {
    const Batch& batch;
    size_t first, last;  // sequences
    const std::vector<Buffer>& buffers;
    int isa;
    char* arena;
    size_t capacity;  // rows, a multiple of 16
    char* scratch;    // of this thread
    size_t index, count;

    size_t tokens() const { return batch.starts[last] - batch.starts[first]; }
    size_t rows(int buffer) const { return buffers[buffer].per_sequence ? last - first : tokens(); }
    // This thread's rows of a buffer.
    Share mine(int buffer, size_t grain = 1) const { return share_of(rows(buffer), grain, index, count); }

    template <class T>
    T* at(int buffer) const {
        return buffer == kNone ? nullptr : reinterpret_cast<T*>(arena + buffers[buffer].offset * capacity);
    }
    // Where the first row's values from `column` on lie.
    void* column(int buffer, size_t column) const {
        return at<char>(buffer) + column * (buffers[buffer].kind == Kind::kBf16 ? 2 : 4);
    }
    size_t stride(int buffer) const { return row_stride(buffers[buffer]); }
    float* scale(int buffer) const { return reinterpret_cast<float*>(at<char>(buffer) + stride(buffer) * capacity); }
    int32_t* zero(int buffer) const { return reinterpret_cast<int32_t*>(scale(buffer) + capacity); }

    // bf16 rows end in what a linear may read beyond their width: made finite by whoever writes such rows.
    void clear_padding(int buffer) const {
        const Buffer& b = buffers[buffer];
        if (b.kind != Kind::kBf16 || b.width % 32 == 0) return;
        const Share rows = mine(buffer);
        for (size_t row = rows.begin; row < rows.end; ++row) {
            uint16_t* values = at<uint16_t>(buffer) + row * stride(buffer);
            memset(values + b.width, 0, (stride(buffer) - b.width) * sizeof(uint16_t));
        }
    }

    QuantizeRows quantizer(int in, int out, const Grid& g) const {
        return {at<void>(in), buffers[in].kind == Kind::kBf16, stride(in),     buffers[in].width,
                g.shift,      g.multiplier,                    at<uint8_t>(out), stride(out),
                scale(out),   zero(out),                       g.mode,           g.static_scale,
                g.static_zero_point, g.code_min};
    }
};

void run(const Embed& op, const Work& w) {
    const Share mine = w.mine(op.out);
    const size_t width = w.buffers[op.out].width, stride = w.stride(op.out);
    const int64_t origin = w.batch.starts[w.first];
    size_t s = w.first;
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const int64_t token = origin + row;
        while (w.batch.starts[s + 1] <= token) ++s;
        float* out = w.at<float>(op.out) + row * stride;
        const size_t id = w.batch.ids[token];
        if (op.word_scale) {
            from_int8(static_cast<const int8_t*>(op.words) + id * width, op.word_scale[id], out, width);
        } else if (op.words_bf16) {
            from_bf16(static_cast<const uint16_t*>(op.words) + id * width, out, width);
        } else {
            memcpy(out, static_cast<const float*>(op.words) + id * width, width * sizeof(float));
        }
        if (op.positions) add(out, op.positions + (op.first_position + token - w.batch.starts[s]) * width, width);
        if (op.types) add(out, op.types + (w.batch.types ? w.batch.types[token] : 0) * width, width);
    }
}

void run(const NormRows& op, const Work& w) {
    constexpr size_t kRows = 8;  // that stay in L1 until they are quantized
    const Share mine = w.mine(op.x);
    const Norm norm{w.at<float>(op.x), w.at<float>(op.residual), w.at<float>(op.sum),     w.at<float>(op.y), op.weight,
                    op.bias,           w.stride(op.x),           w.buffers[op.x].width, op.eps};
    const NormFn norm_fn = norm_for(w.isa);
    if (op.codes == kNone) return norm_fn(&norm, mine.begin, mine.end);
    const QuantizeRows quantize = w.quantizer(op.y, op.codes, op.grid);
    const QuantizeRowsFn quantize_fn = quantize_rows_for(w.isa);
    for (size_t row = mine.begin; row < mine.end; row += kRows) {
        const size_t end = row + kRows < mine.end ? row + kRows : mine.end;
        norm_fn(&norm, row, end);
        quantize_fn(&quantize, row, end);
    }
}

void run(const Quantize& op, const Work& w) {
    const QuantizeRows quantize = w.quantizer(op.in, op.out, op.grid);
    const Share mine = w.mine(op.in);
    quantize_rows_for(w.isa)(&quantize, mine.begin, mine.end);
}

void run(const Round& op, const Work& w) {
    w.clear_padding(op.out);
    const Share mine = w.mine(op.in);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        to_bf16(w.at<float>(op.in) + row * w.stride(op.in), w.at<uint16_t>(op.out) + row * w.stride(op.out),
                w.buffers[op.in].width);
    }
}

// By rows if there are enough of them, else by columns.
template <class Op, class Fn>
void cut_multiply(const Op& op, Fn fn, const Work& w, int in, size_t n) {
    const size_t rows = w.rows(in), blocks = (n + kBlock - 1) / kBlock;
    if (w.count == 1 || rows >= kRowsPerThread * w.count) {
        const Share mine = w.mine(in, 32);
        fn(&op, mine.begin, mine.end, 0, blocks);
    } else {
        const Share mine = share_of(blocks, 4, w.index, w.count);
        fn(&op, 0, rows, mine.begin, mine.end);
    }
}

void run(const MultiplyW8A8& op, const Work& w) {
    w.clear_padding(op.out);
    const Buffer &in = w.buffers[op.in], &out = w.buffers[op.out];
    const LinearW8A8 linear{w.at<uint8_t>(op.in), w.stride(op.in),    w.scale(op.in), w.zero(op.in),
                            op.weight,            op.colsum,          op.scale_n,     op.bias,
                            w.column(op.out, op.column), nullptr,     w.stride(op.out), op.n,
                            round_up(in.width, kPadK), op.gelu,       out.kind == Kind::kBf16};
    if (w.index == 0 && w.first == 0) integer_linears += op.linears;  // once a batch, as without the engine
    cut_multiply(linear, linear_w8a8_for(w.isa), w, op.in, op.n);
}

void run(const MultiplyBf16& op, const Work& w) {
    w.clear_padding(op.out);
    const Buffer &in = w.buffers[op.in], &out = w.buffers[op.out];
    const LinearBf16 linear{w.at<uint16_t>(op.in), w.stride(op.in),  op.weight,
                            op.bias,               w.column(op.out, op.column), w.stride(op.out),
                            op.n,                  round_up(in.width, 32), op.gelu, out.kind == Kind::kBf16};
    cut_multiply(linear, linear_bf16_for(w.isa), w, op.in, op.n);
}

// Heads of sequences are handed out by what they cost, the square of the length.
void run(const Attend& op, const Work& w) {
    w.clear_padding(op.out);
    const AttentionFn attention = attention_for(w.isa);
    const size_t stride = w.stride(op.in), width = op.heads * op.head_size;
    const int64_t *starts = w.batch.starts, origin = starts[w.first];
    const auto cost = [&](size_t s) { return double(starts[s + 1] - starts[s]) * (starts[s + 1] - starts[s]); };
    double total = 0.0, before = 0.0;
    for (size_t s = w.first; s < w.last; ++s) total += cost(s) * op.heads;
    const double begin = total * w.index / w.count, end = w.index + 1 == w.count ? 2 * total : total * (w.index + 1) / w.count;
    for (size_t s = w.first; s < w.last; ++s) {
        const size_t row = starts[s] - origin, tokens = starts[s + 1] - starts[s];
        const uint16_t* q = w.at<uint16_t>(op.in) + row * stride;
        const Attention one{q,      q + width, q + 2 * width, stride,         w.at<uint16_t>(op.out) + row * w.stride(op.out),
                            w.stride(op.out), tokens,  op.head_size, op.scale, op.bias, op.bias_stride, op.window};
        // Heads whose middle lies in this thread's part of the whole.
        size_t head = 0, last = op.heads;
        if (w.count > 1) {
            while (head < op.heads && before + (head + 0.5) * cost(s) < begin) ++head;
            last = head;
            while (last < op.heads && before + (last + 0.5) * cost(s) < end) ++last;
        }
        if (head < last) attention(&one, head, last, 0, tokens, w.scratch);
        before += cost(s) * op.heads;
    }
}

void run(const Pool& op, const Work& w) {
    const Share mine = w.mine(op.out);
    const size_t width = w.buffers[op.in].width, stride = w.stride(op.in);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const int64_t *start = w.batch.starts + w.first + row, tokens = start[1] - start[0];
        const float* in = w.at<float>(op.in) + (start[0] - w.batch.starts[w.first]) * stride;
        float* out = w.at<float>(op.out) + row * w.stride(op.out) + op.column;
        switch (op.mode) {
            case Pooling::kCls:
                memcpy(out, in, width * sizeof(float));
                break;
            case Pooling::kLast:
                memcpy(out, in + (tokens - 1) * stride, width * sizeof(float));
                break;
            case Pooling::kMax:
                memcpy(out, in, width * sizeof(float));
                for (int64_t t = 1; t < tokens; ++t) maximum(out, in + t * stride, width);
                break;
            default:
                memset(out, 0, width * sizeof(float));
                for (int64_t t = 0; t < tokens; ++t) {
                    add_scaled(out, in + t * stride, op.mode == Pooling::kWeightedMean ? float(t + 1) : 1.0f, width);
                }
                const double weights = op.mode == Pooling::kWeightedMean ? tokens * (tokens + 1) / 2.0
                                       : op.mode == Pooling::kMean       ? double(tokens)
                                                                         : __builtin_sqrt(double(tokens));
                multiply(out, float(1.0 / weights), width);
        }
    }
}

void run(const Normalize& op, const Work& w) {
    const Share mine = w.mine(op.rows);
    for (size_t row = mine.begin; row < mine.end; ++row) {
        to_unit_length(w.at<float>(op.rows) + row * w.stride(op.rows), w.buffers[op.rows].width);
    }
}

void run(const Activate& op, const Work& w) {
    const Share mine = w.mine(op.rows);
    const Buffer& buffer = w.buffers[op.rows];
    for (size_t row = mine.begin; row < mine.end; ++row) {
        if (buffer.kind == Kind::kBf16) {
            activate_bf16(w.at<uint16_t>(op.rows) + row * w.stride(op.rows), op.function, buffer.width);
        } else {
            activate(w.at<float>(op.rows) + row * w.stride(op.rows), op.function, buffer.width);
        }
    }
}

void run(const Gate& op, const Work& w) {
    w.clear_padding(op.out);
    const Share mine = w.mine(op.in);
    const size_t width = w.buffers[op.out].width;
    for (size_t row = mine.begin; row < mine.end; ++row) {
        const uint16_t* in = w.at<uint16_t>(op.in) + row * w.stride(op.in);
        gate(in, in + width, w.at<uint16_t>(op.out) + row * w.stride(op.out), width);
    }
}

void run(const Rotate& op, const Work& w) {
    const Share mine = w.mine(op.rows);
    const size_t half = op.head_size / 2;
    const int64_t origin = w.batch.starts[w.first];
    size_t s = w.first;
    for (size_t row = mine.begin; row < mine.end; ++row) {
        while (w.batch.starts[s + 1] - origin <= int64_t(row)) ++s;
        const size_t position = row - (w.batch.starts[s] - origin);
        uint16_t* values = w.at<uint16_t>(op.rows) + row * w.stride(op.rows);
        for (size_t head = 0; head < op.heads; ++head) {
            rotate(values + head * op.head_size, op.cos + position * half, op.sin + position * half, half);
        }
    }
}

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

struct Group {
    size_t first, last;
};

// What a sequence costs beside others, in tokens: its attention grows with the square.
double cost_of(const Batch& batch, size_t s) {
    const double tokens = batch.starts[s + 1] - batch.starts[s];
    return tokens * (1.0 + tokens / 1024.0);
}

std::vector<Group> cut(const Batch& batch, size_t tokens) {
    std::vector<Group> groups;
    for (size_t first = 0; first < batch.sequences;) {
        size_t last = first + 1;
        while (last < batch.sequences && size_t(batch.starts[last + 1] - batch.starts[first]) <= tokens) ++last;
        groups.push_back({first, last});
        first = last;
    }
    return groups;
}

// Whether threads that take groups in order as they come free finish at about the same time.
bool balanced(const Batch& batch, const std::vector<Group>& groups, size_t threads) {
    if (groups.size() < threads) return false;
    std::vector<double> busy(threads, 0.0);
    double total = 0.0, longest = 0.0;
    for (const Group& group : groups) {
        size_t next = 0;
        for (size_t i = 1; i < threads; ++i) next = busy[i] < busy[next] ? i : next;
        for (size_t s = group.first; s < group.last; ++s) busy[next] += cost_of(batch, s);
    }
    for (double time : busy) {
        total += time;
        longest = time > longest ? time : longest;
    }
    return longest * threads <= kImbalance * total;
}

size_t most_rows(const Batch& batch, const std::vector<Group>& groups) {
    size_t most = 0;
    for (const Group& g : groups) {
        const size_t rows = batch.starts[g.last] - batch.starts[g.first];
        most = rows > most ? rows : most;
    }
    return round_up(most, 16);
}

}  // namespace

// One call of Program::run.
struct Run {
    Program& program;
    const Batch& batch;
    float* out;
    double* seconds;
    std::vector<Group> groups;
    size_t capacity, scratch;  // rows of a group; bytes per thread

    void through(const Group& group, char* memory, size_t index, size_t count, Barrier* barrier) {
        const size_t arena = program.arena_row_ * capacity;
        Work work{batch,  group.first, group.last, program.buffers_,                  program.isa_,
                  memory, capacity,    memory + round_up(arena, 64) + index * scratch, index, count};
        size_t op = 0;
        for (const Op& each : program.ops_) {
            const double start = seconds && index == 0 ? now() : 0.0;
            std::visit([&](const auto& known) { ::run(known, work); }, each);
            if (barrier) barrier->wait();
            if (seconds && index == 0) seconds[op] += now() - start;
            ++op;
        }
        copy_out(work);
        if (barrier) barrier->wait();
    }

    void copy_out(const Work& work) {
        const Buffer& buffer = program.buffers_[program.out_];
        const size_t begin = buffer.per_sequence ? work.first : batch.starts[work.first];
        const Share mine = work.mine(program.out_);
        for (size_t row = mine.begin; row < mine.end; ++row) {
            memcpy(out + (begin + row) * buffer.width, work.at<float>(program.out_) + row * work.stride(program.out_),
                   buffer.width * sizeof(float));
        }
    }

    bool each_takes_groups(size_t threads) {
        std::atomic<size_t> next{0};
        std::atomic<bool> failed{false};
        auto work = [&](size_t index, size_t) {
            Memory* memory = program.borrow(capacity, scratch);
            if (!memory) failed = true;
            for (size_t i; memory && (i = next.fetch_add(1)) < groups.size();) {
                Run alone{program, batch, out, index == 0 ? seconds : nullptr, {}, capacity, scratch};
                alone.through(groups[i], memory->data, 0, 1, nullptr);
            }
            if (memory) program.give_back(memory);
        };
        run_in_pool(int(threads), work);
        return !failed;
    }

    bool all_share(size_t threads) {
        Memory* memory = program.borrow(capacity, scratch * threads);
        if (!memory) return false;
        std::atomic<Barrier*> barrier{nullptr};
        alignas(Barrier) char place[sizeof(Barrier)];
        auto work = [&](size_t index, size_t count) {
            if (index == 0) {
                barrier.store(new (place) Barrier(count), std::memory_order_release);
            } else {
                while (!barrier.load(std::memory_order_acquire)) __builtin_ia32_pause();
            }
            Barrier* all = barrier.load(std::memory_order_acquire);
            for (const Group& group : groups) through(group, memory->data, index, count, count > 1 ? all : nullptr);
        };
        run_in_pool(int(threads), work);
        program.give_back(memory);
        return true;
    }
};

size_t row_stride(const Buffer& buffer) {
    switch (buffer.kind) {
        case Kind::kF32:
            return round_up(buffer.width, 16);
        case Kind::kBf16:
            return round_up(buffer.width, 32);
        default:
            return code_stride(buffer.width);
    }
}

Program::Program(int isa, std::vector<Buffer> buffers, size_t arena_row, int out, size_t group_tokens)
    : isa_(isa), buffers_(std::move(buffers)), arena_row_(arena_row), group_tokens_(group_tokens), out_(out) {}

Program::~Program() {
    for (Memory* memory : idle_) {
        munmap(memory->data, memory->bytes);
        delete memory;
    }
}

Memory* Program::borrow(size_t rows, size_t scratch) {
    const size_t bytes = round_up(round_up(arena_row_ * rows, 64) + scratch, kHugePage);
    Memory* memory = nullptr;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!idle_.empty()) {
            memory = idle_.back();
            idle_.pop_back();
        }
    }
    if (memory && memory->bytes >= bytes) return memory;
    if (memory) {
        munmap(memory->data, memory->bytes);
        bytes_ -= memory->bytes;
    } else {
        memory = new Memory;
    }
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        delete memory;
        return nullptr;
    }
    madvise(data, bytes, MADV_HUGEPAGE);  // advice: without it the rest works as well
    *memory = {static_cast<char*>(data), bytes};
    bytes_ += bytes;
    return memory;
}

void Program::give_back(Memory* memory) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(memory);
}

bool Program::run(const Batch& batch, int wanted, float* out, double* seconds) {
    if (batch.sequences == 0) return true;
    const size_t tokens = batch.starts[batch.sequences];
    size_t threads = wanted, longest = 0, head_size = 0;
    for (size_t s = 0; s < batch.sequences; ++s) {
        const size_t length = batch.starts[s + 1] - batch.starts[s];
        longest = length > longest ? length : longest;
    }
    for (const Op& op : ops_) {
        if (const Attend* attend = std::get_if<Attend>(&op)) {
            head_size = attend->head_size > head_size ? attend->head_size : head_size;
        }
    }
    const size_t scratch = head_size ? round_up(attention_scratch_bytes(longest, head_size), 64) : 0;
    if (threads > 1 && tokens >= kTokensPerThread * threads) {
        const size_t share = (tokens + threads - 1) / threads;
        std::vector<Group> groups = cut(batch, share < group_tokens_ ? share : group_tokens_);
        if (balanced(batch, groups, threads)) {
            const size_t rows = most_rows(batch, groups);
            return Run{*this, batch, out, seconds, std::move(groups), rows, scratch}.each_takes_groups(threads);
        }
    }
    std::vector<Group> groups = cut(batch, group_tokens_ * threads);
    const size_t rows = most_rows(batch, groups);
    return Run{*this, batch, out, seconds, std::move(groups), rows, scratch}.all_share(threads);
}

size_t Program::memory() const { return bytes_; }
