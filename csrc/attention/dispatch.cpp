#include "dispatch.h"

#include "sizes.h"

namespace {

constexpr Variant<AttentionFn*> kVariants[] = {
    {"amx", Isa::kAmx, attention_amx},
    {"avx512bf16", Isa::kAvx512Vnni, attention_avx512bf16, has_avx512_bf16, bf16_is_fast},
    {"avx512", Isa::kAvx512Vnni, attention_avx512},
    {"avx2", Isa::kAvx2, attention_avx2},
    {"scalar", Isa::kScalar, attention_scalar},
};

}  // namespace

constinit const Variants<AttentionFn*> attention_variants = kVariants;

// Of the variant that takes most: keys and values of a head in f32, scores of 32 queries in f32, their packed queries.
size_t attention_scratch_bytes(size_t tokens, size_t head_size) {
    const size_t rows = round_up(tokens, 32) + 32, size = round_up(head_size, 32);
    return (2 * rows * size + 32 * rows + 64 * size + 1024) * sizeof(float);
}
