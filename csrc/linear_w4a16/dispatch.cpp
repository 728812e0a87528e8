#include "dispatch.h"

namespace {

constexpr Variant<W4A16Kernels> kVariants[] = {
    {"amx", Isa::kAmx, {prepare_w4a16_avx512, linear_w4a16_amx}},
    {"avx512bf16", Isa::kAvx512Vnni, {prepare_w4a16_avx512, linear_w4a16_avx512bf16}, has_avx512_bf16, bf16_is_fast},
    {"avx512", Isa::kAvx512Vnni, {prepare_w4a16_avx512, linear_w4a16_avx512}},
    {"avx2", Isa::kAvx2, {prepare_w4a16_avx2, linear_w4a16_avx2}},
    {"scalar", Isa::kScalar, {prepare_w4a16_scalar, linear_w4a16_scalar}},
};

}  // namespace

constinit const Variants<W4A16Kernels> linear_w4a16_variants = kVariants;
