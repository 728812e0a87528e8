// gram: gram[i, j] += sum_m x[m, i] * x[m, j] with x rounded to bf16, and what each feature of x is
//
//   x         [M, K] f32, or bf16 if that is set, row m starts at x + m * x_stride (in elements, any alignment)
//   packed    M32 rows of K32 values, both rounded up to 32, bf16, 64-byte aligned, any content before: runs of kRun
//             rows, the last shorter; in a run [K32 / 16, rows / 2, 16, 2], zero where padded. Two rows of sixteen
//             features are the 64 bytes that one vdpbf16ps takes, and sixteen of those are the B tile of tdpbf16ps
//   low, high [K] f32, lowered and raised to x; both NaN for a feature that holds a NaN or an infinity
//   sum,      [K] f64, to which sum x and sum |x| are added: f32 within a run, f64 over the runs
//   sum_abs
//   gram      [K, K] f32, row i at gram + i * K, any alignment: full and symmetric before and after
//
// `pack` reads x and writes packed, low, high, sum and sum_abs of column blocks [block_begin, block_end) of 16; both
// are even. `multiply` reads packed and adds to squares [begin, end) of the Gram matrix: 32 x 32 values on and above
// the diagonal, and their mirror below. There are gram_squares(k) of them, in the order of squares.h.
//
// Rounding is to the nearest, half to even; subnormals are zero. Products are added in f32 within a run, and the runs
// to the matrix in order, so that the result does not depend on how squares are shared out. No allocation, threads or
// state. Shapes are checked in Python.
//
// There is no variant for a CPU that does not multiply bf16: there, torch's float32 product is as fast and more exact.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct Gram {
    const void* x;
    bool bf16;
    size_t x_stride;
    size_t m, k;
    uint16_t* packed;
    float *low, *high;
    double *sum, *sum_abs;
    float* gram;
};

// Rows of a run; rows and columns of a square, to a multiple of which both M and K are padded; columns of a block.
enum { kRun = 512, kSquare = 32, kColumns = 16 };

using GramPackFn = void(const Gram*, size_t block_begin, size_t block_end);
using GramMultiplyFn = void(const Gram*, size_t begin, size_t end);

extern "C" {
GramPackFn gram_pack_avx512bf16;
GramMultiplyFn gram_multiply_avx512bf16, gram_multiply_amx;
}

// A variant.
struct GramKernels {
    GramPackFn* pack;
    GramMultiplyFn* multiply;
};

static inline size_t gram_panels(size_t k) { return (k + kSquare - 1) / kSquare; }

static inline size_t gram_squares(size_t k) { return gram_panels(k) * (gram_panels(k) + 1) / 2; }
