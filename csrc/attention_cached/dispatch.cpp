#include "dispatch.h"

namespace {

constexpr Variant<const CachedKernels*> kVariants[] = {
    {"avx512bf16", Isa::kAvx512Vnni, &kCachedAvx512Bf16, has_avx512_bf16},
    {"avx512vnni", Isa::kAvx512Vnni, &kCachedAvx512Vnni},
    {"avxvnni", Isa::kAvxVnni, &kCachedAvxVnni},
    {"avx2", Isa::kAvx2, &kCachedAvx2},
    {"scalar", Isa::kScalar, &kCachedScalar},
};

}  // namespace

constinit const Variants<const CachedKernels*> attention_cached_variants = kVariants;
