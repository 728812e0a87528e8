#include "contract.h"
#include "cpu.h"

LinearBf16Fn linear_bf16_for(int isa) {
    const LinearBf16Fn avx512 = has_avx512_bf16() ? linear_bf16_avx512bf16 : linear_bf16_avx512vnni;
    const LinearBf16Fn variants[] = {linear_bf16_scalar, linear_bf16_avx2, avx512, linear_bf16_amx};
    return variants[isa];
}
