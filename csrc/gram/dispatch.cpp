#include "dispatch.h"

namespace {

constexpr Variant<GramKernels> kVariants[] = {
    {"amx", Isa::kAmx, {gram_pack_avx512bf16, gram_multiply_amx}},
    {"avx512bf16", Isa::kAvx512Vnni, {gram_pack_avx512bf16, gram_multiply_avx512bf16}, has_avx512_bf16},
};

}  // namespace

constinit const Variants<GramKernels> gram_variants = kVariants;
