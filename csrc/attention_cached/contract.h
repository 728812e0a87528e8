// attention_cached: keys and values of a sequence go into a paged cache, in 8 or 16 bits; attention over that cache.
//
// The cache is a pool of blocks of kCacheBlock tokens. Keys and values of the tokens of a block, of head h of the keys
// and values, are the cache_head_bytes(kind, D) bytes, D = head_size, at
//
//   the layer's blocks + block * block_stride + h * head_stride
//
// so that one table of blocks for each sequence serves every layer. Blocks of a head that follow each other in memory
// (block_stride = cache_head_bytes) are read a sixth faster than blocks anywhere. In there, one after the other, as the
// products take them:
//
//   int8    keys    [4, D / 4, 16, 4] u8   code + 128: four values of each of 16 keys are a vector of 64 bytes
//           values  [16, D, 4] s8          code: one value of each of four tokens is a cell of 4 bytes
//           scales  [64] f32 of keys, [64] f32 of values
//   bf16    keys    [4, D / 2, 16, 2]
//           values  [32, D, 2]
//
// int8: codes -127 to 127, scale = largest magnitude / 127, one for each token and head, 0 where that is below the
// normal numbers. A token whose key or value is not finite has the key scale NaN (int8), a key of NaN (bf16), and zeros
// as its value: every query that sees it becomes NaN, and no other.
//
// append: rows `tokens` of k and v are tokens past, past + 1, ... of the sequence. The first token of a block clears
// that head's part of the block. So tokens of one block are appended in order and by one thread: a cut between two
// calls is at a multiple of kCacheBlock of the position.
//
// attend, merge: attention of the last `rows` tokens of a sequence, all of them appended. heads_per_kv query heads
// share a head of the cache. A *line* is one row of one of these: line = row * heads_per_kv + the query head within the
// group. Lines [line_begin, line_end) of a head of the cache, over the keys of one *part*, kPart keys at a fixed place,
// become partial results; merge turns those of the parts [first, end) of parts_seen into rows of out.
//
//   q, out     bf16, row r at q + r * q_stride, query head n at n * head_size; any alignment
//   scale      positive
//   softcap    0, or c: a score s becomes c * tanh(s / c)
//   causal     the token at position p sees keys 0 to p; else every key of the sequence
//   window     0 for none, or w: keys w or more from p are left out, on either side
//   sinks      null, or f32 of every query head: a score that adds to the sum of weights, and has no value
//   table      block of tokens 64 i to 64 i + 63 of the sequence
//   partials   f32, 64-byte aligned, partial_floats(D) for each line: out[D] without the division, sum[16] by lanes,
//              largest score in units of log2 (-inf where no key is seen); the rest is not used
//   part_stride  f32 between the partials of two parts
//
// Arithmetic, int8: a row of q has codes and a scale as a key. Scores are int32 sums, exact, times scales in f32. Of
// each 64 keys, in order: m = the largest score so far; p = 2^(score - m); out = out * 2^(old m - m) + step * sum of
// bytes * codes of values, the sum exact, where byte = rint(p * value scale / step), step = largest p * value scale of
// the 64 / 255, and what is below 2^-119 counts as 0; sum = sum * 2^(old m - m) + sum of p. Not the sum of the bytes: a
// sink, the first token of most language models, has nearly all the weight and a value near zero, and a byte that is
// made small by a value's scale says little of its weight.
// bf16: products in f32, weights in bf16 or f32, the same order. A key that is not seen is left out by selection,
// whatever its scale. 2^x has a relative error below 2^-13.
//
// A line has the same bytes whatever the other lines of the call, and however many tokens were appended at once. No
// allocation, threads or state. head_size is a multiple of 16 up to kMaxHeadSize; addresses in the cache are multiples
// of 64. All this is checked in Python.
#pragma once
#include "attention/contract.h"

enum class CacheKind { kInt8, kBf16 };
enum : size_t { kCacheBlock = 64, kPart = 1024 };

static inline size_t cache_head_bytes(CacheKind kind, size_t head_size) {
    if (kind == CacheKind::kBf16) return kCacheBlock * head_size * 2 * sizeof(uint16_t);
    return kCacheBlock * (head_size * 2 + 2 * sizeof(float));
}

static inline size_t partial_floats(size_t head_size) { return head_size + 32; }

// One layer of the cache.
struct CacheLayer {
    CacheKind kind;
    char* blocks;         // head 0 in block 0
    size_t block_stride;  // bytes
    size_t head_stride;
    size_t head_size;
};

struct AppendCached {
    CacheLayer cache;
    const int32_t* table;
    size_t past;
    const uint16_t* k;  // row t at k + t * stride, head h at h * head_size
    const uint16_t* v;
    size_t stride;
};

struct AttendCached {
    CacheLayer cache;
    const int32_t* table;
    size_t past, rows;
    const uint16_t* q;
    size_t q_stride;
    uint16_t* out;
    size_t out_stride;
    size_t heads_per_kv;
    float scale, softcap;
    bool causal;
    size_t window;
    const float* sinks;
};

// Positions of keys, or parts.
struct CachedRange {
    size_t begin, end;
};

// The keys that one of the rows [begin, end) sees.
static inline CachedRange keys_seen(const AttendCached* p, size_t begin, size_t end) {
    const size_t all = p->past + p->rows, first = p->past + begin, last = p->past + end;
    size_t seen_end = last;
    if (!p->causal) seen_end = p->window && p->window < all - (last - 1) ? last - 1 + p->window : all;
    return {p->window && first + 1 > p->window ? first + 1 - p->window : 0, seen_end};
}

// The parts that hold these keys.
static inline CachedRange parts_seen(const AttendCached* p, size_t begin, size_t end) {
    const CachedRange keys = keys_seen(p, begin, end);
    return {keys.begin / kPart, (keys.end + kPart - 1) / kPart};
}

using AppendCachedFn = void(const AppendCached*, size_t token_begin, size_t token_end, size_t head_begin,
                            size_t head_end);
using AttendCachedFn = void(const AttendCached*, size_t head, size_t line_begin, size_t line_end, size_t part,
                            float* partials);
using MergeCachedFn = void(const AttendCached*, size_t head, size_t line_begin, size_t line_end, size_t parts,
                           const float* partials, size_t part_stride);

// A variant.
struct CachedKernels {
    AppendCachedFn* append;
    AttendCachedFn* attend;
    MergeCachedFn* merge;
};

extern const CachedKernels kCachedScalar, kCachedAvx2, kCachedAvxVnni, kCachedAvx512Vnni, kCachedAvx512Bf16;
