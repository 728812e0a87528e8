#include "binding.h"

#include "torch/register.h"

void bind_torch(nb::module_& m) { bind_function(m, "register_torch", &register_torch); }
