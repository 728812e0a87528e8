#include "dispatch.h"

#include "sizes.h"

namespace {

constexpr Variant<AttentionFn*> kVariants[] = {
    {"amx", Isa::kAmx, attention_int8_amx},
    {"avx512bf16", Isa::kAvx512Vnni, attention_int8_avx512bf16, has_avx512_bf16, bf16_is_fast},
    {"avx512vnni", Isa::kAvx512Vnni, attention_int8_avx512vnni},
    {"avxvnni", Isa::kAvx2, attention_int8_avxvnni, has_avx_vnni},
    {"avx2", Isa::kAvx2, attention_int8_avx2},
    {"scalar", Isa::kScalar, attention_int8_scalar},
};

}  // namespace

constinit const Variants<AttentionFn*> attention_int8_variants = kVariants;

// Of the variant that takes most: codes of keys, values, queries and weights in cells of four bytes for every two
// values, and what lies beside them in f32. No less than a head in floats takes.
size_t attention_int8_scratch_bytes(size_t tokens, size_t head_size) {
    const size_t keys = round_up(tokens, kKeyBlock) + kKeyBlock, size = round_up(head_size, 32);
    const size_t codes = 2 * (2 * keys * size + 32 * size + 32 * keys);
    const size_t floats = 2 * keys + 2 * size + 32 * kKeyBlock + 32 * (2 * keys / kKeyBlock + 4);
    const size_t bytes = codes + sizeof(float) * floats + 1024, in_floats = attention_scratch_bytes(tokens, head_size);
    return bytes > in_floats ? bytes : in_floats;
}
