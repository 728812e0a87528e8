// Running a program: how a batch is cut into groups, and groups are given to threads. Where all threads share a group,
// operators.h says what is whose.
#include <string.h>
#include <time.h>

#include <new>

#include "operators.h"
#include "program.h"
#include "sizes.h"
#include "threads/pool.h"
#include "threads/share.h"

namespace {

// Tokens per thread from which on a thread takes whole groups.
constexpr size_t kTokensPerThread = 96;
// A cut into whole groups is good enough if its longest thread takes no more than this times the mean.
constexpr double kImbalance = 1.15;

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

// The groups of one call, in memory that the calling thread keeps: a call allocates nothing once it has been as large.
const std::vector<Group>& cut(const Batch& batch, size_t tokens) {
    thread_local std::vector<Group> groups;
    groups.clear();
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
    thread_local std::vector<double> busy;
    busy.assign(threads, 0.0);
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
    const std::vector<Group>& groups;
    size_t capacity, shared, scratch;  // rows of a group; bytes of all threads together; and of each

    void through(const Group& group, char* memory, size_t index, size_t count, Barrier* barrier) {
        Work work{.batch = batch,
                  .first = group.first,
                  .last = group.last,
                  .buffers = program.buffers_,
                  .isa = program.isa_,
                  .arena = memory,
                  .capacity = capacity,
                  .scratch = memory + bytes(0) + index * scratch,
                  .shared = memory + bytes(0) - shared,
                  .index = index,
                  .count = count,
                  .barrier = barrier};
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
        const size_t begin = buffer.per == Per::kSequence ? work.first
                             : buffer.per == Per::kOutput ? 0
                                                          : batch.starts[work.first];
        const Share mine = work.mine(program.out_);
        for (size_t row = mine.begin; row < mine.end; ++row) {
            memcpy(out + (begin + row) * buffer.width, work.at<float>(program.out_) + row * work.stride(program.out_),
                   buffer.width * sizeof(float));
        }
    }

    size_t bytes(size_t threads) const {
        return round_up(program.arena_row_ * capacity, 64) + shared + threads * scratch;
    }

    bool each_takes_groups(size_t threads) {
        std::atomic<size_t> next{0};
        auto work = [&](size_t index, size_t) {
            Memory* memory = program.memories_.borrow(bytes(1));
            if (!memory) return;  // the others do it all, if there are any
            for (size_t i; (i = next.fetch_add(1)) < groups.size();) {
                Run alone{program, batch, out, index == 0 ? seconds : nullptr, groups, capacity, shared, scratch};
                alone.through(groups[i], memory->data, 0, 1, nullptr);
            }
            program.memories_.give_back(memory);
        };
        run_in_pool(int(threads), work);
        return next >= groups.size();
    }

    bool all_share(size_t threads) {
        Memory* memory = program.memories_.borrow(bytes(threads));
        if (!memory) return false;
        std::atomic<Barrier*> barrier{nullptr};
        alignas(Barrier) char place[sizeof(Barrier)];
        auto work = [&](size_t index, size_t count) {
            if (index == 0) {
                barrier.store(new (place) Barrier(count), std::memory_order_release);
            } else {
                int spins = 0;
                while (!barrier.load(std::memory_order_acquire)) give_way(spins);
            }
            Barrier* all = barrier.load(std::memory_order_acquire);
            for (const Group& group : groups) through(group, memory->data, index, count, count > 1 ? all : nullptr);
        };
        run_in_pool(int(threads), work);
        program.memories_.give_back(memory);
        return true;
    }
};

size_t row_stride(const Buffer& buffer) {
    switch (buffer.kind) {
        case BufferKind::kF32:
            return round_up(buffer.width, 16);
        case BufferKind::kBf16:
            return round_up(buffer.width, 32);
        default:
            return code_stride(buffer.width);  // bytes
    }
}

size_t row_bytes(const Buffer& buffer) {
    switch (buffer.kind) {
        case BufferKind::kF32:
            return row_stride(buffer) * sizeof(float);
        case BufferKind::kBf16:
            return row_stride(buffer) * sizeof(uint16_t);
        default:
            const size_t groups = buffer.group ? buffer.width / buffer.group : 1;
            return row_stride(buffer) + groups * (sizeof(float) + sizeof(int32_t));
    }
}

size_t cache_rows_bytes(size_t rows, size_t width) { return round_up(rows * width * sizeof(uint16_t), 64); }

Program::Program(Isa isa, std::vector<Buffer> buffers, size_t arena_row, int out, size_t group_tokens)
    : isa_(isa), buffers_(std::move(buffers)), arena_row_(arena_row), group_tokens_(group_tokens), out_(out) {}

bool Program::run(const Batch& batch, int wanted, float* out, double* seconds) {
    if (batch.sequences == 0) return true;
    const size_t tokens = batch.starts[batch.sequences];
    size_t threads = least(wanted, kMostThreads), longest = 0, shared = 0, scratch = 0;
    for (size_t s = 0; s < batch.sequences; ++s) {
        const size_t length = batch.starts[s + 1] - batch.starts[s];
        longest = length > longest ? length : longest;
    }
    for (const Op& op : ops_) {
        const size_t bytes = std::visit([&](const auto& known) { return scratch_bytes(known, buffers_, longest); }, op);
        scratch = bytes > scratch ? round_up(bytes, 64) : scratch;
        const size_t together = std::visit([&](const auto& known) { return shared_bytes(known, batch, threads); }, op);
        shared = together > shared ? round_up(together, 64) : shared;
    }
    if (!batch.past && threads > 1 && tokens >= kTokensPerThread * threads) {
        const size_t share = (tokens + threads - 1) / threads;
        const std::vector<Group>& groups = cut(batch, least(share, group_tokens_));
        if (balanced(batch, groups, threads)) {
            const size_t rows = most_rows(batch, groups);
            return Run{*this, batch, out, seconds, groups, rows, shared, scratch}.each_takes_groups(threads);
        }
    }
    const std::vector<Group>& groups = cut(batch, batch.past ? tokens : group_tokens_ * threads);
    const size_t rows = most_rows(batch, groups);
    return Run{*this, batch, out, seconds, groups, rows, shared, scratch}.all_share(threads);
}
