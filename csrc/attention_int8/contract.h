// attention_int8: attention of one sequence in integers. Arguments, ranges and scratch as in attention/contract.h.
//
// Arithmetic, of one head:
//
//   q       codes -127 to 127, one scale per token: its largest magnitude / 127
//   k       less its mean over all the tokens of the sequence, which moves every score of a query alike and so changes
//           no softmax; then as q. The mean is a f32 sum in an order that only the number of tokens decides
//   v       codes -127 to 127, one scale per dimension: the largest magnitude of all tokens / 127
//   scores  int32 sums of products of codes, exact; times both scales and `scale` in f32; then the bias is added
//   weights the keys from kKeyBlock * b on, up to kKeyBlock of them, are a block: a weight is a whole number of 0 to
//           255, within one of 255 * 2^(score - the block's largest), in units of log2
//   out     the sum over blocks, in order and in f32, of 2^(the block's largest - the row's largest) * sum of weights *
//           codes of v, which is exact; times the scale of v; divided by the same sum of the weights alone, so that
//           rounding takes no weight from a long flat tail; rounded to bf16
//
// A variant may compute more exactly than this, as `attention` does, where that is faster: which one does depends on the
// number of tokens alone.
//
// A largest magnitude below the normal numbers counts as zero, and its codes are zero. A NaN or an infinity in q gives
// NaN in the query's row. A head with one in k or v is computed by `attention`. A NaN in the bias gives NaN in the rows
// that add it. A query's result depends neither on how the range is cut nor on the other queries.
#pragma once
#include "attention/contract.h"

enum : size_t { kKeyBlock = 64 };

extern "C" AttentionFn attention_int8_scalar, attention_int8_avx2, attention_int8_avxvnni, attention_int8_avx512vnni,
    attention_int8_avx512bf16, attention_int8_amx;

// Enough for every variant, and for `attention`.
size_t attention_int8_scratch_bytes(size_t tokens, size_t head_size);
