#include "dispatch.h"

namespace {

constexpr Variant<LinearBf16Fn*> kVariants[] = {
    {"amx", Isa::kAmx, linear_bf16_amx},
    {"avx512bf16", Isa::kAvx512Vnni, linear_bf16_avx512bf16, has_avx512_bf16},
    {"avx512", Isa::kAvx512Vnni, linear_bf16_avx512},
    {"avx2", Isa::kAvx2, linear_bf16_avx2},
    {"scalar", Isa::kScalar, linear_bf16_scalar},
};

}  // namespace

constinit const Variants<LinearBf16Fn*> linear_bf16_variants = kVariants;
