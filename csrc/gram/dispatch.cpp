#include "contract.h"
#include "cpu.h"

const GramVariant* gram_for(int isa) {
    static constexpr GramVariant avx512bf16 = {gram_pack_avx512bf16, gram_multiply_avx512bf16};
    static constexpr GramVariant amx = {gram_pack_avx512bf16, gram_multiply_amx};
    static const bool vectors = multiplies_bf16(kAvx512Vnni), tiles = multiplies_bf16(kAmx);  // CPUID is slow
    if (isa < kAvx512Vnni || !vectors) return nullptr;
    return isa >= kAmx && tiles ? &amx : &avx512bf16;
}
