#pragma once
#include <nanobind/nanobind.h>

// The class Program, for Python: addresses and sizes in. bitwright/engine checks what it passes.
void bind_engine(nanobind::module_& m);
