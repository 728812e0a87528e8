// Instruction sets, best last, and whether this processor and this operating system run them.
#pragma once

enum Isa { kScalar = 0, kAvx2 = 1, kAvx512Vnni = 2, kAmx = 3, kIsaCount = 4 };

inline constexpr const char* kIsaNames[kIsaCount] = {"scalar", "avx2", "avx512vnni", "amx"};

struct CpuFeature {
    const char* name;
    bool present;
};

// True if the processor has the instructions and the operating system saves their registers. For amx it also asks Linux
// for the permission to use tile data, which a process must do once before its first tile instruction.
bool isa_supported(Isa isa);

// Whether what an instruction set multiplies with, AVX-512's vectors or AMX's tiles, multiplies bf16 too.
bool multiplies_bf16(Isa isa);

// Products of bf16, in vectors and in tiles: beyond what their instruction sets, avx512vnni and amx, promise.
bool has_avx512_bf16();
bool has_amx_bf16();

// vpdpbusd in 256 bits, without AVX-512: beyond what avx2 promises.
bool has_avx_vnni();

// The features that kernels, here and in torch, choose by. Ends with a null name.
const CpuFeature* cpu_features();
