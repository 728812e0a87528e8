// How operators come to Python: a contract's struct is a class, built by keyword, with the names of its fields; an
// address is an integer. Nothing is converted and nothing checked but types: kernels/cpu.py checks what it passes.
#pragma once
#include <nanobind/nanobind.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <tuple>
#include <type_traits>

#include "variants.h"

namespace nb = nanobind;

// How a field comes: as it is; an address as an integer; a struct of its own as that, or None for its defaults.
template <class T>
struct FromPython {
    using Type = T;
    static T made(T value) { return value; }
    static auto named(const char* name) {
        if constexpr (std::is_floating_point_v<T>) {
            return nb::arg(name);  // without conversion only what f32 holds exactly would do
        } else {
            return nb::arg(name).noconvert();
        }
    }
};

template <class T>
struct FromPython<T*> : FromPython<uintptr_t> {
    static T* made(uintptr_t address) { return reinterpret_cast<T*>(address); }
};

template <class T>
    requires std::is_class_v<T>
struct FromPython<T> {
    using Type = const T*;
    static T made(const T* value) { return value ? *value : T{}; }
    static auto named(const char* name) { return nb::arg(name).noconvert().none(); }
};

template <class Struct, class T>
struct Field {
    const char* name;
    T Struct::* member;
};

// All fields are given, by keyword, or a TypeError is raised.
template <class Struct, class... T>
void bind_struct(nb::module_& m, const char* name, Field<Struct, T>... fields) {
    nb::class_<Struct>(m, name).def(
        "__init__",
        [members = std::make_tuple(fields.member...)](Struct* self, typename FromPython<T>::Type... values) {
            Struct* made = new (self) Struct{};
            std::apply([&](auto... member) { ((made->*member = FromPython<T>::made(values)), ...); }, members);
        },
        nb::kw_only(), FromPython<T>::named(fields.name)...);
}

// The variant of this name, which this processor must run.
template <class Kernel>
Kernel kernel_of(Variants<Kernel> variants, const char* name) {
    for (const Variant<Kernel>& variant : variants) {
        if (strcmp(variant.name, name)) continue;
        if (!runs(variant)) throw nb::value_error((std::string("this processor does not run ") + name).c_str());
        return variant.kernel;
    }
    throw nb::value_error((std::string("no variant is named ") + name).c_str());
}

// A function of exactly these types: no integer is a member of an enumeration. The GIL is released meanwhile.
template <class Result, class... T>
void bind_function(nb::module_& m, const char* name, Result (*function)(T...)) {
    const auto exactly = [](auto) { return nb::arg().noconvert(); };
    m.def(name, function, exactly(std::type_identity<T>{})..., nb::call_guard<nb::gil_scoped_release>());
}

void bind_attention(nb::module_& m);
void bind_attention_cached(nb::module_& m);
void bind_attention_int8(nb::module_& m);
void bind_engine(nb::module_& m);
void bind_gram(nb::module_& m);
void bind_linear_bf16(nb::module_& m);
void bind_linear_w4a16(nb::module_& m);
void bind_linear_w4a8(nb::module_& m);
void bind_linear_w8a8(nb::module_& m);
void bind_linear_wna16(nb::module_& m);
void bind_norm(nb::module_& m);
void bind_peak_int8(nb::module_& m);
void bind_quantize_groups(nb::module_& m);
void bind_quantize_rows(nb::module_& m);
void bind_rows(nb::module_& m);
void bind_torch(nb::module_& m);
