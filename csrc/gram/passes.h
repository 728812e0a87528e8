// The rows of x through the Gram matrix's two steps, on several threads: pass by pass, so that the scratch is small.
// Threads share a pass's columns, then its squares.
#pragma once
#include "dispatch.h"
#include "sizes.h"
#include "threads/parallel.h"
#include "threads/share.h"

// Column blocks that one thread packs at least, and rows of a pass.
constexpr size_t kPackGrain = 2, kPassRows = 4 * kRun;

// Of a pass of packed rows, for op.packed.
inline size_t gram_scratch_bytes(size_t m, size_t k) {
    return round_up(least(m, kPassRows), kSquare) * round_up(k, kSquare) * sizeof(uint16_t);
}

inline void add_gram(const GramKernels& kernels, int threads, const Gram& op) {
    const size_t squares = gram_squares(op.k), blocks = gram_panels(op.k) * (kSquare / kColumns);
    parallel(useful_threads(threads, op.m * squares * kSquare * kSquare), [&](int index, int count) {
        const Share columns = share_of(blocks, kPackGrain, index, count);
        const Share mine = share_of(squares, 1, index, count);
        Gram pass = op;
        for (size_t begin = 0; begin < op.m; begin += kPassRows) {
            if (begin > 0 && count > 1) barrier();
            pass.x =
                static_cast<const char*>(op.x) + begin * op.x_stride * (op.bf16 ? sizeof(uint16_t) : sizeof(float));
            pass.m = least(op.m - begin, kPassRows);
            kernels.pack(&pass, columns.begin, columns.end);
            if (count > 1) barrier();
            kernels.multiply(&pass, mine.begin, mine.end);
        }
    });
}
