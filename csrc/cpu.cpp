#include "cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// arch_prctl(2): XFEATURE_XTILEDATA must be requested per process, because it enlarges every signal frame by 8 KiB.
constexpr int kRequestPermission = 0x1023;
constexpr int kTileData = 18;

// Slow, above all in a virtual machine, which leaves the processor for it.
bool leaf7_edx(unsigned bit) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && ((edx >> bit) & 1);
}

bool tiles_saved_by_os() {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !((ecx >> 27) & 1)) return false;  // OSXSAVE
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & 0x60000) == 0x60000;  // XTILECFG and XTILEDATA
}

// What operators ask of each call, found when the module is loaded: a fork could interrupt it later, and leave the
// child with a constant that is for ever being made.
const bool amx_bf16 = leaf7_edx(22) && tiles_saved_by_os();
const bool avx_vnni = [] {
    unsigned eax, ebx, ecx, edx;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && ((eax >> 4) & 1);
}();

bool amx_int8_usable() {
    static const bool usable = leaf7_edx(24) && leaf7_edx(25) && tiles_saved_by_os() &&
                               syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return usable;
}

bool avx512vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

}  // namespace

bool isa_supported(Isa isa) {
    switch (isa) {
        case Isa::kScalar:
            return true;
        case Isa::kAvx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case Isa::kAvx512Vnni:
            return avx512vnni();
        case Isa::kAmx:
            return avx512vnni() && has_avx512_bf16() && amx_bf16 && amx_int8_usable();
    }
    return false;
}

bool has_avx512_bf16() { return __builtin_cpu_supports("avx512bf16"); }

bool bf16_is_fast() { return __builtin_cpu_is("amd"); }

bool has_avx_vnni() { return avx_vnni; }

const CpuFeature* cpu_features() {
    static const CpuFeature features[] = {
        {"avx2", bool(__builtin_cpu_supports("avx2"))},
        {"fma", bool(__builtin_cpu_supports("fma"))},
        {"avx_vnni", has_avx_vnni()},
        {"avx512f", bool(__builtin_cpu_supports("avx512f"))},
        {"avx512bw", bool(__builtin_cpu_supports("avx512bw"))},
        {"avx512vnni", bool(__builtin_cpu_supports("avx512vnni"))},
        {"avx512_bf16", has_avx512_bf16()},
        {"amx_bf16", amx_bf16},
        {"amx_int8", leaf7_edx(25) && tiles_saved_by_os()},
        {nullptr, false},
    };
    return features;
}
