#include "dispatch.h"

namespace {

constexpr Variant<LinearW8A8Fn*> kVariants[] = {
    {"amx", Isa::kAmx, linear_w8a8_amx},
    {"avx512bf16", Isa::kAvx512Vnni, linear_w8a8_avx512bf16, has_avx512_bf16},
    {"avx512vnni", Isa::kAvx512Vnni, linear_w8a8_avx512vnni},
    {"avxvnni", Isa::kAvx2, linear_w8a8_avxvnni, has_avx_vnni},
    {"avx2", Isa::kAvx2, linear_w8a8_avx2},
    {"scalar", Isa::kScalar, linear_w8a8_scalar},
};

}  // namespace

constinit const Variants<LinearW8A8Fn*> linear_w8a8_variants = kVariants;
