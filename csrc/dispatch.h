// Every operator's table of variants, each in <operator>/dispatch.cpp.
#pragma once
#include "attention/contract.h"
#include "attention_cached/contract.h"
#include "attention_int8/contract.h"
#include "gram/contract.h"
#include "linear_bf16/contract.h"
#include "linear_w4a16/contract.h"
#include "linear_w4a8/contract.h"
#include "linear_w8a8/contract.h"
#include "linear_wna16/contract.h"
#include "norm/contract.h"
#include "peak_int8/contract.h"
#include "quantize_groups/contract.h"
#include "quantize_rows/contract.h"
#include "rows/contract.h"
#include "variants.h"

extern const Variants<AttentionFn*> attention_variants;
extern const Variants<const CachedKernels*> attention_cached_variants;
extern const Variants<AttentionFn*> attention_int8_variants;
extern const Variants<GramKernels> gram_variants;  // only for processors that multiply bf16
extern const Variants<LinearBf16Fn*> linear_bf16_variants;
extern const Variants<W4A16Kernels> linear_w4a16_variants;
extern const Variants<LinearW4A8Fn*> linear_w4a8_variants;
extern const Variants<LinearW8A8Fn*> linear_w8a8_variants;
extern const Variants<UnpackWna16Fn*> linear_wna16_variants;
extern const Variants<NormFn*> norm_variants;
extern const Variants<PeakInt8Fn*> peak_int8_variants;  // none is scalar
extern const Variants<QuantizeGroupsFn*> quantize_groups_variants;
extern const Variants<QuantizeRowsFn*> quantize_rows_variants;
extern const Variants<const RowOperators*> rows_variants;

// linear_wna16 by the best variants of an instruction set, of its own and of linear_bf16.
void linear_wna16(Isa isa, const LinearWna16*, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end,
                  void* scratch);
