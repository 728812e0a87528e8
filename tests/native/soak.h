// The parts of the soak: see soak.cpp.
#pragma once
#include "cpu.h"
#include "exact.h"

// Every kernel of an instruction set once, on operands of random shapes.
void soak_kernels(Random& random, Isa isa);
