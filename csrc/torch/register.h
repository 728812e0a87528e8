// The operators of torch.ops.bitwright that are written here.
#pragma once
#include "cpu.h"
#include "torch/abi.h"

namespace torch_abi {

// schema: as torch writes it, the operator's name first.
void define(const char* schema, Boxed function);

template <auto function>
void define(const char* schema) {
    define(schema, Operator<function>::call);
}

}  // namespace torch_abi

// That the operators run on, as `register_torch` was told.
Isa active_isa();

void register_linears();
void register_experts();

// Once in a process. libtorch_cpu: its path.
void register_torch(const char* libtorch_cpu, Isa isa);
