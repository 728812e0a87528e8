// attention_cached: keys and values of a sequence go into a paged cache, in 4, 8 or 16 bits; attention over that
// cache.
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
//   int4    keys    [4, D / 8, 16, 4] u8   codes + 8 of values 8 j + i and 8 j + 4 + i, in the lower and the upper half
//           values  [8, D, 4] u8           codes of tokens 8 j + i and 8 j + 4 + i, likewise
//           scales  [D / key_group, 64] bf16 of keys, [D / value_group, 64] bf16 of values
//           zeros   [D / value_group, 64] u8 of values
//   bf16    keys    [4, D / 2, 16, 2]
//           values  [32, D, 2]
//
// int4 has every token a second time in 8 bits, for the queries near it: keys with their scales in a block of a second
// table, values with theirs in a block of a third. Each is as in int8, and no larger than a block of int4. A query at
// position p sees the keys of the first block, of its own, of the kHotBlocks before that one, and of any later one in 8
// bits, all others in 4 (is_hot). So what it sees is a function of two positions, whatever a step computes; and only
// those blocks of the second and the third table need to be there which a query of this call sees in 8 bits, or to
// which tokens are appended.
//
// int8 and int4: keys and values are first rotated, so that none of their numbers stands out: each stretch, as long as
// the largest power of two that divides D, is divided by its length and multiplied by a Hadamard matrix of ones and
// minus ones, in steps of sums and differences (rotate_head).
// int8: codes -127 to 127, scale = largest magnitude / 127, one for each token and head, 0 where that is below the
// normal numbers.
// int4: each key_group or value_group numbers have a scale, rounded to bf16. In 8 bits: as int8. Keys: codes -8 to 7;
// the number of largest magnitude has the code -8, so that scales are negative, too. Values: codes 0 to 15 of the
// range that they and zero span, and value = (code - zero) * scale. A token whose key or value is not finite has key
// scales NaN (int8, int4) or a key of NaN (bf16), and a value of zeros: every query that sees it becomes NaN, and no
// other. So values and their scales are always finite.
//
// append: rows `tokens` of k and v are tokens past, past + 1, ... of the sequence. The first token of a block clears
// that head's part of the block. So tokens of one block are appended in order and by one thread: a cut between two
// calls is at a multiple of kCacheBlock of the position.
//
// attend, merge: attention of the last `rows` tokens of a sequence, all of them appended. heads_per_kv query heads
// share a head of the cache. A *line* is a row of one query head: line = row * heads_per_kv + the query head within its
// group. attend computes partial results: lines [line_begin, line_end) of one head of the cache, over the keys of one
// *part*. Parts are kPart keys at fixed places. merge turns the partial results of all the parts that one of these
// lines sees (parts_seen), the first part first, into rows of out.
//
//   q, out     bf16, row r at q + r * q_stride, query head n at n * head_size; any alignment
//   scale      positive
//   softcap    0, or c: a score s becomes c * tanh(s / c)
//   causal     the token at position p sees keys 0 to p; else every key of the sequence
//   window     0 for none, or w: keys w or more from p are left out, on either side
//   sinks      null, or f32 of every query head: a score that adds to the sum of weights, and has no value
//   table      block of tokens 64 i to 64 i + 63 of the sequence; int4: three of them, table_stride apart
//   partials   f32, 64-byte aligned, partial_floats(D) for each line: out[D] without the division, sum[16] by lanes,
//              largest score in units of log2 (-inf where no key is seen); the rest is not used
//   part_stride  f32 between the partials of two parts
//
// Arithmetic: a row of q is multiplied by the same Hadamard matrix, then becomes codes of int8 with a scale, as a key.
// int8: a score is an int32 sum of products of codes, exact, times both scales and `scale` in f32. int4: each group has
// its sum, exact, times the key's scale in f32; these are added in order, or keys in 8 bits have one sum. out is
// rotated back by merge. Then, for the keys of each block in turn, in f32 but for the sum of products:
//
//   m     the largest score so far, in this part
//   p     2^(score - m), in units of log2, with a relative error below 2^-13
//   step  the largest p * value scale of the block / 255; 0 if that largest is below 2^-119
//   byte  rint(p * value scale / step)
//   out   out * 2^(m before - m) + step * the sum of byte * code of the value, exact
//   sum   sum * 2^(m before - m) + the sum of p
//
// and out / sum is the result. int4: each group of values has its own step and bytes, values in 8 bits have one step.
// The sum is not that of the bytes: the first token of most language models has nearly all the weight and a value near
// zero, so that its byte is small and says little of its weight. bf16: the same without bytes: products in f32, and
// weights rounded to bf16 or not. A key that is not seen is left out by selection of its score, whatever its scale.
//
// A line has the same bytes whatever the other lines of the call, and however many tokens were appended at once. No
// allocation, threads or state. head_size is a multiple of 16 up to kMaxHeadSize; addresses in the cache are multiples
// of 64. All this is checked in Python.
#pragma once
#include "attention/contract.h"

enum class CacheKind { kInt8, kInt4, kBf16 };
enum : size_t { kCacheBlock = 64, kPart = 1024, kKeyGroup = 32, kValueGroup = 64, kMostGroups = kMaxHeadSize / 16 };
// Of int4, full blocks before a query's own that it sees in 8 bits.
enum : size_t { kHotBlocks = 3 };

// Whether queries in a block see the keys of another in 8 bits, in a cache of int4.
static inline bool is_hot(size_t block_of_query, size_t block_of_key) {
    return block_of_key == 0 || block_of_key + kHotBlocks >= block_of_query;
}

// Numbers of a head that are rotated together: the largest power of two that divides their number.
static inline size_t rotated_together(size_t head_size) { return head_size & -head_size; }

// Numbers of a head in int4 that share a scale.
static inline size_t key_group(size_t head_size) {
    const size_t most = rotated_together(head_size);
    return most < kKeyGroup ? most : kKeyGroup;
}
static inline size_t value_group(size_t head_size) {
    const size_t most = rotated_together(head_size);
    return most < kValueGroup ? most : kValueGroup;
}

static inline size_t cache_head_bytes(CacheKind kind, size_t head_size) {
    if (kind == CacheKind::kBf16) return kCacheBlock * head_size * 2 * sizeof(uint16_t);
    if (kind == CacheKind::kInt8) return kCacheBlock * 2 * (head_size + sizeof(float));
    const size_t of_keys = head_size / key_group(head_size) * sizeof(uint16_t),
                 of_values = head_size / value_group(head_size) * (sizeof(uint16_t) + sizeof(uint8_t));
    return kCacheBlock * (head_size + of_keys + of_values);
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
    size_t table_stride;
    size_t past;
    const uint16_t* k;  // row t at k + t * stride, head h at h * head_size
    const uint16_t* v;
    size_t stride;
};

struct AttendCached {
    CacheLayer cache;
    const int32_t* table;
    size_t table_stride;
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
