#include "contract.h"
#include "cpu.h"

LinearW8A8Fn linear_w8a8_for(int isa) {
    static constexpr LinearW8A8Fn variants[] = {
        linear_w8a8_scalar,
        linear_w8a8_avx2,
        linear_w8a8_avx512vnni,
        linear_w8a8_amx,
    };
    return isa == kAvx2 && has_avx_vnni() ? linear_w8a8_avxvnni : variants[isa];
}
