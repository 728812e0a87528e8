// peak_int8, AVX-VNNI: vpdpbusd, 64 operations, on twelve sums.
#include "contract.h"

#define DOT(sum) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #sum "\n\t"

uint64_t peak_int8_avxvnni(uint64_t repeats) {
    for (uint64_t i = 0; i < repeats; ++i) {
        __asm__ volatile(DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11)::
                             : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                               "xmm11");
    }
    return repeats * 12 * 64;
}
