#include "torch/register.h"

namespace {

Isa chosen = Isa::kScalar;
torch_abi::Handle schemas, cpu;  // torch::Library, never freed: with them the operators would go

}  // namespace

namespace torch_abi {

void define(const char* schema, Boxed function) {
    check(functions().aoti_torch_library_def(schemas, schema), schema);
    const std::string name(schema, strchr(schema, '('));
    check(functions().aoti_torch_library_impl(cpu, name.c_str(), function), name.c_str());
}

}  // namespace torch_abi

Isa active_isa() { return chosen; }

void register_torch(const char* libtorch_cpu, Isa isa) {
    torch_abi::load(libtorch_cpu);
    chosen = isa;
    const torch_abi::Functions& torch = torch_abi::functions();
    torch_abi::check(torch.aoti_torch_library_init_fragment("bitwright", __FILE__, __LINE__, &schemas), "library");
    torch_abi::check(torch.aoti_torch_library_init_impl("bitwright", "CPU", __FILE__, __LINE__, &cpu), "library");
    register_linears();
    register_experts();
}
