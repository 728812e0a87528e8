// Attention over the cache on one step: see operators.h. Everything is internal to the file that includes it.
//
// A task is some lines (attention_cached/contract.h) of one head of keys and values of one sequence, over all parts of
// the cache that they see. Where lines are few and parts many, as when one long text grows by a token, the parts of a
// task are shared out too, and merged once all are there. Who computes what changes no result.
#pragma once
#include <math.h>
#include <string.h>

#include "attention_cached/contract.h"
#include "dispatch.h"
#include "program.h"
#include "sizes.h"
#include "work.h"

namespace {

constexpr size_t kLinesAtOnce = 64;  // of a task
constexpr size_t kFewTokens = 64;    // of a step, up to which parts are shared out

size_t most_parts(const Batch& batch) {
    size_t most = 0;
    for (size_t s = 0; s < batch.sequences; ++s) {
        const size_t end = batch.past[s] + (batch.starts[s + 1] - batch.starts[s]);
        most = end > most ? end : most;
    }
    return (most + kPart - 1) / kPart;
}

bool shares_parts(const Batch& batch) {
    return size_t(batch.starts[batch.sequences]) <= kFewTokens && most_parts(batch) > 1;
}

// Floats of a part's results: of the lines of a task, or of all lines of the step.
size_t part_floats(const AttendPast& op, const Batch& batch) {
    const size_t lines = shares_parts(batch) ? batch.starts[batch.sequences] * op.heads : kLinesAtOnce;
    return lines * partial_floats(op.head_size);
}

size_t shared_bytes(const AttendPast& op, const Batch& batch, size_t threads) {
    return part_floats(op, batch) * most_parts(batch) * (shares_parts(batch) ? 1 : threads) * sizeof(float);
}

CacheLayer layer_of(const AttendPast& op, const Batch& batch) {
    const size_t bytes = cache_head_bytes(op.kind, op.head_size);
    return {.kind = op.kind,
            .blocks = batch.cache + op.layer * batch.block_count,
            .block_stride = bytes,
            .head_stride = bytes * batch.block_count,
            .head_size = op.head_size};
}

AttendCached attention_of(const AttendPast& op, const Work& w, size_t s) {
    const size_t row = w.batch.starts[s];
    return {.cache = layer_of(op, w.batch),
            .table = w.batch.tables + s * w.batch.table_stride,
            .table_stride = w.batch.sequences * w.batch.table_stride,
            .past = w.past(s),
            .rows = size_t(w.batch.starts[s + 1]) - row,
            .q = w.at<uint16_t>(op.in) + row * w.stride(op.in),
            .q_stride = w.stride(op.in),
            .out = w.at<uint16_t>(op.out) + row * w.stride(op.out),
            .out_stride = w.stride(op.out),
            .heads_per_kv = op.heads / op.kv_heads,
            .scale = op.scale,
            .softcap = op.softcap,
            .causal = op.causal,
            .window = op.window,
            .sinks = op.sinks};
}

constexpr size_t kMostValues = 256;  // values of a head

void norm_heads(const AttendPast& op, const Work& w, uint16_t* values, size_t heads, const float* weight) {
    float in[kMostValues], out[kMostValues];
    const RowOperators& rows = *best(rows_variants, w.isa);
    const Norm norm{.x = in,
                    .residual = nullptr,
                    .sum = nullptr,
                    .y = out,
                    .weight = weight,
                    .bias = nullptr,
                    .stride = kMostValues,
                    .n = op.head_size,
                    .eps = op.eps,
                    .centred = false};
    for (; heads > 0; --heads, values += op.head_size) {
        rows.widen(values, in, op.head_size);
        best(norm_variants, w.isa)(&norm, 0, 1);
        rows.round(out, values, op.head_size);
    }
}

// Of the values that rotate, interleaved, the even ones of each head first, then the odd ones, which then rotate as the
// halves of others do. q and k change places alike, so scores stay.
void part_pairs(const AttendPast& op, uint16_t* values, size_t heads) {
    const size_t half = op.rotary / 2;
    uint16_t odd[kMostValues / 2];
    for (; heads > 0; --heads, values += op.head_size) {
        for (size_t i = 0; i < half; ++i) {
            odd[i] = values[2 * i + 1];
            values[i] = values[2 * i];
        }
        memcpy(values + half, odd, half * sizeof(uint16_t));
    }
}

// Norms, rotates and appends rows [begin, end) of a sequence, for one head of keys and values and its queries.
void prepare(const AttendPast& op, const Work& w, size_t s, size_t head, size_t begin, size_t end) {
    const RowOperators& rows = *best(rows_variants, w.isa);
    const size_t stride = w.stride(op.in), group = op.heads / op.kv_heads, size = op.head_size, half = op.rotary / 2;
    uint16_t* in = w.at<uint16_t>(op.in) + w.batch.starts[s] * stride;
    for (size_t row = begin; row < end; ++row) {
        uint16_t *q = in + row * stride + head * group * size, *k = in + row * stride + (op.heads + head) * size;
        if (op.q_weight) norm_heads(op, w, q, group, op.q_weight);
        if (op.k_weight) norm_heads(op, w, k, 1, op.k_weight);
        if (!op.rotary) continue;
        if (op.interleaved) part_pairs(op, q, group), part_pairs(op, k, 1);
        const size_t angles = (w.past(s) + row) * half;
        rows.rotate(q, group, size, op.rotary, op.cos + angles, op.sin + angles);
        rows.rotate(k, 1, size, op.rotary, op.cos + angles, op.sin + angles);
    }
    const uint16_t* keys = in + op.heads * size;
    const AppendCached append{.cache = layer_of(op, w.batch),
                              .table = w.batch.tables + s * w.batch.table_stride,
                              .table_stride = w.batch.sequences * w.batch.table_stride,
                              .past = w.past(s),
                              .k = keys,
                              .v = keys + op.kv_heads * size,
                              .stride = stride};
    best(attention_cached_variants, w.isa)->append(&append, begin, end, head, head + 1);
}

// The end of the rows that lie in the same block of the cache as `row`.
size_t block_end(const Work& w, size_t s, size_t row) {
    const size_t rows = w.batch.starts[s + 1] - w.batch.starts[s];
    return least(rows, round_up(w.past(s) + row + 1, kCacheBlock) - w.past(s));
}

// This thread's part of tasks that cost something: each(f), where f(cost) is called for every task, in order, and says
// whether this thread computes it. Tasks go to the thread in whose part of the whole their middle lies.
template <class Each>
void share_by_cost(const Work& w, Each each) {
    double total = 0.0, before = 0.0;
    each([&](double cost) {
        total += cost;
        return false;
    });
    const double begin = total * w.index / w.count, end = total * (w.index + 1) / w.count;
    each([&](double cost) {
        const double middle = before + cost / 2;
        before += cost;
        return middle >= begin && (middle < end || w.index + 1 == w.count);
    });
}

void prepare_all(const AttendPast& op, const Work& w) {
    share_by_cost(w, [&](auto is_mine) {
        for (size_t s = 0; s < w.batch.sequences; ++s) {
            const size_t rows = w.batch.starts[s + 1] - w.batch.starts[s];
            for (size_t begin = 0, end; begin < rows; begin = end) {
                end = block_end(w, s, begin);
                for (size_t head = 0; head < op.kv_heads; ++head) {
                    if (is_mine(end - begin)) prepare(op, w, s, head, begin, end);
                }
            }
        }
    });
}

// Each part of each task by itself, then each task's merge.
void attend_parts(const AttendPast& op, const Work& w) {
    const CachedKernels& kernels = *best(attention_cached_variants, w.isa);
    const size_t line_floats = partial_floats(op.head_size), part_stride = part_floats(op, w.batch);
    float* const partials = reinterpret_cast<float*>(w.shared);
    const auto each_task = [&](auto task) {
        for (size_t s = 0; s < w.batch.sequences; ++s) {
            const AttendCached one = attention_of(op, w, s);
            const size_t lines = one.rows * one.heads_per_kv;
            float* first = partials + w.batch.starts[s] * op.heads * line_floats;
            for (size_t head = 0; head < op.kv_heads; ++head, first += lines * line_floats) {
                task(one, head, lines, first, parts_seen(&one, 0, one.rows));
            }
        }
    };
    share_by_cost(w, [&](auto is_mine) {
        each_task([&](const AttendCached& one, size_t head, size_t lines, float* first, CachedRange parts) {
            const CachedRange keys = keys_seen(&one, 0, one.rows);
            for (size_t part = parts.begin; part < parts.end; ++part) {
                const size_t begin = part * kPart > keys.begin ? part * kPart : keys.begin;
                if (!is_mine(lines * (least(keys.end, (part + 1) * kPart) - begin))) continue;
                kernels.attend(&one, head, 0, lines, part, first + (part - parts.begin) * part_stride);
            }
        });
    });
    w.wait();
    share_by_cost(w, [&](auto is_mine) {
        each_task([&](const AttendCached& one, size_t head, size_t lines, float* first, CachedRange parts) {
            if (is_mine(lines)) kernels.merge(&one, head, 0, lines, parts.end - parts.begin, first, part_stride);
        });
    });
}

// Whole tasks. alone: what a task reads of this step nobody else needs, so that it is prepared with it.
void attend_tasks(const AttendPast& op, const Work& w, bool alone) {
    const CachedKernels& kernels = *best(attention_cached_variants, w.isa);
    const size_t part_stride = part_floats(op, w.batch);
    float* const partials = reinterpret_cast<float*>(w.shared) + w.index * part_stride * most_parts(w.batch);
    const size_t group = op.heads / op.kv_heads, rows_at_once = group < kLinesAtOnce ? kLinesAtOnce / group : 1;
    share_by_cost(w, [&](auto is_mine) {
        for (size_t s = 0; s < w.batch.sequences; ++s) {
            const AttendCached one = attention_of(op, w, s);
            for (size_t head = 0; head < op.kv_heads; ++head) {
                for (size_t row = 0; row < one.rows; row += rows_at_once) {
                    const size_t end = least(one.rows, row + rows_at_once);
                    const CachedRange keys = keys_seen(&one, row, end), parts = parts_seen(&one, row, end);
                    if (!is_mine(double(end - row) * group * (keys.end - keys.begin))) continue;
                    if (alone) prepare(op, w, s, head, 0, one.rows);
                    float* at = partials;
                    for (size_t part = parts.begin; part < parts.end; ++part, at += part_stride) {
                        kernels.attend(&one, head, row * group, end * group, part, at);
                    }
                    kernels.merge(&one, head, row * group, end * group, parts.end - parts.begin, partials, part_stride);
                }
            }
        }
    });
}

// Whether every sequence is one task for each head, and its new tokens lie in one block.
bool stands_alone(const AttendPast& op, const Work& w) {
    for (size_t s = 0; s < w.batch.sequences; ++s) {
        const size_t rows = w.batch.starts[s + 1] - w.batch.starts[s];
        if (rows * (op.heads / op.kv_heads) > kLinesAtOnce || block_end(w, s, 0) < rows) return false;
    }
    return true;
}

void run(const AttendPast& op, const Work& w) {
    w.clear_padding(op.out);
    const bool by_parts = shares_parts(w.batch), alone = !by_parts && stands_alone(op, w);
    if (!alone) {
        prepare_all(op, w);
        w.wait();
    }
    by_parts ? attend_parts(op, w) : attend_tasks(op, w, alone);
}

}  // namespace
