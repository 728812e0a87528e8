// Each of the linears once, by a variant: see linears.cpp.
#pragma once
#include "dispatch.h"
#include "exact.h"

void soak_linear_w8a8(Random& random, LinearW8A8Fn* fn);
void soak_linear_w4a8(Random& random, LinearW4A8Fn* fn);
void soak_linear_w4a16(Random& random, const W4A16Kernels& kernels);
void soak_linear_bf16(Random& random, LinearBf16Fn* fn);
void soak_linear_wna16(Random& random, Isa isa);
