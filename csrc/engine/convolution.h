// Short convolutions over the tokens of a sequence, on one step: see operators.h. Everything is internal to the file
// that includes it.
//
// Threads share the features, not the rows: what a token reads, its thread has written before it.
#pragma once
#include "attention_cached/contract.h"
#include "dispatch.h"
#include "program.h"
#include "work.h"

namespace {

// The product of the token at a position, in the cache.
uint16_t* product_of(const ConvolvePast& op, const Work& w, size_t s, size_t position) {
    const size_t width = w.buffers[op.out].width, bytes = cache_rows_bytes(op.rows, width);
    const size_t block = w.batch.tables[s * w.batch.table_stride + position / kCacheBlock];
    char* layer = w.batch.cache + op.layer * w.batch.block_count;
    return reinterpret_cast<uint16_t*>(layer + block * bytes) + position % kCacheBlock % op.rows * width;
}

void run(const ConvolvePast& op, const Work& w) {
    w.clear_padding(op.out);
    const RowOperators& rows = *best(rows_variants, w.isa);
    const size_t width = w.buffers[op.out].width;
    const Share mine = share_of(width, 32, w.index, w.count);
    if (mine.begin == mine.end) return;
    for (size_t s = w.first; s < w.last; ++s) {
        const size_t first = w.batch.starts[s], past = w.past(s), count = w.batch.starts[s + 1] - first;
        for (size_t row = 0; row < count; ++row) {
            const uint16_t* in = w.at<uint16_t>(op.in) + (first + row) * w.stride(op.in) + mine.begin;
            const size_t position = past + row;
            const uint16_t* before[kMostTaps] = {};
            for (size_t tap = 0; tap + 1 < op.taps; ++tap) {
                const size_t back = op.taps - 1 - tap;
                if (back <= position) before[tap] = product_of(op, w, s, position - back) + mine.begin;
            }
            rows.convolve({.b = in,
                           .c = in + width,
                           .x = in + 2 * width,
                           .taps = op.taps,
                           .weight = op.weight + mine.begin,
                           .weight_stride = width,
                           .bias = op.bias ? op.bias + mine.begin : nullptr,
                           .before = before,
                           .product = product_of(op, w, s, position) + mine.begin,
                           .y = w.at<uint16_t>(op.out) + (first + row) * w.stride(op.out) + mine.begin},
                          mine.end - mine.begin);
        }
    }
}

}  // namespace
