// A model as a flat list of operators over buffers, and its execution. Knows no model: builders in Python write
// programs.
//
// A batch is any number of sequences of any lengths, laid end to end: there is no padding. Buffers have a row for each
// token, for each sequence, or for each token whose output is wanted; how many rows is known when a batch comes, so a
// buffer's place in the arena is given per row. Weights belong to the caller and outlive the program.
//
// A program with state computes a step: each sequence brings new tokens, which follow the tokens that its part of a
// cache holds already. The cache belongs to the caller, too; a step appends to it.
#pragma once
#include <stdint.h>

#include <variant>
#include <vector>

#include "attention/contract.h"
#include "attention_cached/contract.h"
#include "attention_int8/contract.h"
#include "cpu.h"
#include "linear_bf16/contract.h"
#include "linear_w4a8/contract.h"
#include "linear_w8a8/contract.h"
#include "linear_wna16/contract.h"
#include "memory.h"
#include "norm/contract.h"
#include "quantize_groups/contract.h"
#include "quantize_rows/contract.h"
#include "rows/contract.h"

// Rows of f32 or bf16 values; of 8-bit codes with a scale and a zero point for each row; or of 8-bit codes with a scale
// and a sum for each group of a row.
enum class BufferKind { kF32, kBf16, kCodes, kGroups };
// What a buffer has a row for. Outputs are the tokens whose output is wanted.
enum class Per { kToken, kSequence, kOutput };

// width: values of a row. offset: of the buffer, in bytes per row of capacity; the same for buffers that are never
// alive together. group: values of a group, which divides the width; 0 for other kinds.
struct Buffer {
    BufferKind kind;
    size_t width, offset;
    Per per;
    size_t group = 0;
};

// Values, or bytes of codes, from one row of a buffer to the next: whole cache lines.
size_t row_stride(const Buffer& buffer);
// Bytes that a row takes in the arena, with the scales and zero points or sums of codes.
size_t row_bytes(const Buffer& buffer);

enum : int { kNone = -1 };  // in place of a buffer

// How float rows become codes: the fields of QuantizeRows that do not depend on a batch. Rows of groups know the shift,
// the multiplier and, of the modes, kSymmetric: one scale for a row, which all of its groups have.
struct InputGrid {
    const float* shift;
    const float* multiplier;
    QuantizeMode mode;
    float static_scale;
    int32_t static_zero_point, code_min;
};

// out[t] = words[id] + positions[first + place in the sequence] + types[type]; the last two may be null. Words are f32,
// bf16, or int8 with a scale per row. Tokens that are `padding` (kNone: none is), which a text may hold, take no place:
// they have the position before the first, as in transformers' RoBERTa.
struct Embed {
    const void* words;
    WordKind kind;
    const float* word_scale;  // of int8 rows
    const float* positions;
    size_t first_position;
    int64_t padding;
    const float* types;
    float factor;  // of the word
    int out;
};

// See norm/contract.h. residual, sum and codes may be kNone; x may be bf16; codes: quantized y. residual_after: the
// residual is added to the norm of x, and y is their sum; there is no other sum.
struct NormRows {
    int x, residual, sum, y, codes;
    const float* weight;
    const float* bias;
    float eps;
    bool centred, residual_after;
    InputGrid grid;
};

// The RMSNorm of columns [column, column + n) of bf16 rows, in place.
struct NormColumns {
    int rows;
    size_t column, n;
    const float* weight;
    float eps;
};

// f32 or bf16 rows -> codes.
struct Quantize {
    int in, out;
    InputGrid grid;
};

// f32 or bf16 rows -> bf16 rows: their place on the grid, (code - zero point) * scale; or, not on_grid, the values
// themselves, after the grid's shift and multiplier if it has them.
struct Round {
    int in, out;
    bool on_grid;
    InputGrid grid;
};

// See linear_w8a8/contract.h, linear_bf16/contract.h and linear_wna16/contract.h. Columns [column, column + n) of out
// are written; column is a multiple of 16. linears: of the model, that are computed together. grid: static, of an out
// that holds codes.
struct MultiplyW8A8 {
    int in, out;
    size_t column, n, linears;
    const int8_t* weight;
    const int32_t* colsum;
    const float* scale_n;
    const float* bias;
    Activation activation;
    InputGrid grid;
};

struct MultiplyBf16 {
    int in, out;
    size_t column, n;
    const uint16_t* weight;
    const float* bias;
    Activation activation;
};

// See linear_w4a8/contract.h.
struct MultiplyW4A8 {
    int in, out;
    size_t column, n, linears;
    Wna8 weight;
    const float* bias;
    Activation activation;
};

struct MultiplyWna16 {
    int in, out;
    size_t column, n;
    Wna16 weight;
    const float* bias;
    Activation activation;
};

// Rows of in: q, k and v of every head. See attention/contract.h, or attention_int8/contract.h if integer.
struct Attend {
    int in, out;
    size_t heads, head_size;
    float scale;
    const float* bias;
    size_t bias_stride, window;
    bool integer;
};

// Attention with DeBERTa's biases, see disentangled.h. Tables are packed as the weights of linear_bf16, scaled, a
// linear of table_rows outputs (a multiple of 16) for each head; either may be null. row[key - query]: the row of a
// distance, which never falls as the distance grows; row points at distance 0.
struct AttendDisentangled {
    int in, out;
    size_t heads, head_size;
    float scale;
    const uint16_t* key_table;
    const uint16_t* query_table;
    size_t table_rows;
    const int32_t* row;
    bool integer;
};

// Attention of new tokens over the cache: rows of in are q of every head, then k, then v of every head of keys and
// values. q and k of each head are normed if there are weights [head_size], and their first `rotary` values rotated by
// position, the first half of those with the second, or, if they are interleaved, each even one with the next; cos, sin
// [positions, rotary / 2], or null. Then k and v are appended to the cache, and read from it. See
// attention_cached/contract.h for the rest; layer: where the layer begins in a cache of one block, in bytes.
struct AttendPast {
    int in, out;
    size_t heads, kv_heads, head_size;
    float scale, softcap;
    size_t window;
    bool causal;
    const float* sinks;
    CacheKind kind;
    size_t layer;
    const float* q_weight;
    const float* k_weight;
    float eps;
    size_t rotary;
    bool interleaved;
    const float* cos;
    const float* sin;
};

// A gated short convolution over time: rows of in are b, c, x [width of out] each; see `convolve` in rows/contract.h.
// The products b * x of a sequence, bf16, are its state: they are written to the cache, and those of the taps - 1
// tokens before a token are read from there. weight [taps, width], bias [width] or null. taps: at most kMostTaps.
//
// layer: where the layer begins in a cache of one block, in bytes. A block has `rows` rows of a layer: the token at
// position p has row p % kCacheBlock % rows, where it takes the place of an older one. So a block holds the products of
// the last `rows` tokens that were written to it, and a text goes on from wherever taps - 1 of them are left: from the
// end of the block, which is a checkpoint, and from a few tokens before the last. rows divides kCacheBlock and is at
// least taps.
struct ConvolvePast {
    int in, out;
    size_t taps, rows, layer;
    const float* weight;
    const float* bias;
};

enum : size_t { kMostTaps = 8 };

// Bytes of these rows of a block.
size_t cache_rows_bytes(size_t rows, size_t width);

// The rows of in, of tokens, whose output is wanted.
struct Select {
    int in, out;
};

// Rows of in, f32 or bf16, twice side by side.
struct Repeat {
    int in, out;
};

enum class PoolMode { kCls, kMean, kMax, kMeanSqrtLen, kWeightedMean, kLast };

// One f32 row per sequence, of its rows of `in`, into columns [column, column + width of in).
struct Pool {
    int in, out;
    PoolMode mode;
    size_t column;
};

// Rows scaled to unit length, in place; a row of zeros stays.
struct Normalize {
    int rows;
};

// x -> f(x), in place, f32 or bf16.
struct Activate {
    int rows;
    Function function;
};

// f(a) * b of the halves [a, b] of bf16 rows, f32 until it is rounded to `out`: f32, bf16, or codes on the grid.
struct Gate {
    int in, out;
    Function function;
    InputGrid grid;
};

// q and k of each head rotated by position, in place, bf16: the first half of a head's values with the second.
// cos, sin [positions, head_size / 2]. heads: of q and k together, from the first column on.
struct Rotate {
    int rows;
    size_t heads, head_size;
    const float* cos;
    const float* sin;
};

// Rows of `rows` plus those of in, in place, f32.
struct Add {
    int rows, in;
};

// x -> cap * tanh(x / cap), in place, f32.
struct Softcap {
    int rows;
    float cap;
};

using Op = std::variant<Embed, NormRows, NormColumns, Quantize, Round, MultiplyW8A8, MultiplyBf16, MultiplyW4A8,
                        MultiplyWna16, Attend, AttendDisentangled, AttendPast, ConvolvePast, Select, Repeat, Pool,
                        Normalize, Activate, Gate, Rotate, Add, Softcap>;

// starts [sequences + 1]: sequence s is tokens [starts[s], starts[s + 1]) of ids, and of types unless that is null;
// each has at least one token.
// Of a step, else null or 0: past [sequences], tokens of each sequence that the cache holds; outputs [output_count],
// ascending, the tokens whose output is wanted; cache, block_count blocks of each head of each layer, one head's after
// another's (a convolution has one head); tables [sequences, table_stride], the blocks of each sequence, enough for its
// tokens; with an int4 cache [3, sequences, table_stride], see attention_cached/contract.h.
struct Batch {
    const int32_t* ids;
    const int32_t* types;
    const int64_t* starts;
    size_t sequences;
    const int32_t* past = nullptr;
    const int32_t* outputs = nullptr;
    size_t output_count = 0;
    char* cache = nullptr;
    size_t block_count = 0;
    const int32_t* tables = nullptr;
    size_t table_stride = 0;
};

class Program {
public:
    // arena_row: bytes of all buffers, per row. out: the buffer that a run returns. group_tokens: see `run`.
    Program(Isa isa, std::vector<Buffer> buffers, size_t arena_row, int out, size_t group_tokens);
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    void add(Op op) { ops_.push_back(op); }

    // The rows of the output buffer of all sequences, in order, into out. Any number of calls may run at once, steps if
    // no sequence is in two of them.
    //
    // Sequences are taken in groups of up to `group_tokens` tokens, or of one if that is longer, so that a group's
    // buffers stay in L2; those of a step are one group, so that weights are read once. If the groups keep all threads
    // busy each thread runs whole groups; else all threads share each operator, and wait for each other between two.
    // seconds: null, or [ops] gets the time that thread 0 spent in each.
    //
    // Returns false if memory runs out: nothing is lost then, but what is in out.
    bool run(const Batch& batch, int threads, float* out, double* seconds);

    size_t op_count() const { return ops_.size(); }
    // Bytes that arenas hold now.
    size_t memory() const { return memories_.bytes(); }

private:
    friend struct Run;
    const Isa isa_;
    const std::vector<Buffer> buffers_;
    const size_t arena_row_, group_tokens_;
    const int out_;
    std::vector<Op> ops_;
    Memories memories_;
};
