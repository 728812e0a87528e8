// Instruction sets, and whether this processor and this operating system run them.
#pragma once
#include <stddef.h>

// Each includes those before it.
enum class Isa { kScalar, kAvx2, kAvx512Vnni, kAmx };

struct IsaName {
    Isa isa;
    const char* name;  // as in BITWRIGHT_ISA
};

// Best first.
inline constexpr IsaName kIsas[] = {
    {Isa::kAmx, "amx"},
    {Isa::kAvx512Vnni, "avx512vnni"},
    {Isa::kAvx2, "avx2"},
    {Isa::kScalar, "scalar"},
};

struct CpuFeature {
    const char* name;
    bool present;
};

// True if the processor has the instructions and the operating system saves their registers. For amx it also asks Linux
// for the permission to use tile data, which a process must do once before its first tile instruction.
bool isa_supported(Isa isa);

// Products of bf16 in vectors: beyond what avx512vnni promises. Every processor with int8 tiles so far has them, and
// bf16 tiles too: amx promises both.
bool has_avx512_bf16();

// Whether one of those products takes less time than the two in f32 that do the same. One a cycle on Zen 4, which does
// one vfmadd; one in two cycles on Sapphire Rapids, which does four vfmadd meanwhile (measured: 1.7 times as fast).
bool bf16_is_fast();

// vpdpbusd in 256 bits, without AVX-512: beyond what avx2 promises.
bool has_avx_vnni();

// The features that kernels, here and in torch, choose by. Ends with a null name.
const CpuFeature* cpu_features();
