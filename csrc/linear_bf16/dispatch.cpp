#include "contract.h"
#include "cpu.h"

LinearBf16Fn linear_bf16_for(int isa) {
    static constexpr LinearBf16Fn variants[] = {
        linear_bf16_scalar,
        linear_bf16_avx2,
        linear_bf16_avx512vnni,
    };
    if (isa == kAmx && multiplies_bf16(kAmx)) return linear_bf16_amx;
    if (isa >= kAvx512Vnni) return multiplies_bf16(kAvx512Vnni) ? linear_bf16_avx512bf16 : linear_bf16_avx512vnni;
    return variants[isa];
}
